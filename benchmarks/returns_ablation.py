"""
Which settings matter? `default` of hyperparams/trpo.yml, our entry for any environment, each of its settings changed alone.

On seeds that are not reported, for a third of the steps. One row a run in benchmarks/results/returns_ablation.csv; runs that
have a row with the same settings are skipped, so it can be stopped and started again.

    python benchmarks/returns_ablation.py            # what is missing: hours on two cores
    python benchmarks/returns_ablation.py --table    # only print the table of what is there
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import results_file
from returns import entries, learn

from sb3_trpo_plus import zoo

FILE = Path(__file__).parent / "results" / "returns_ablation.csv"
STEPS = 300_000
ENVS = ("HalfCheetah-v4", "Hopper-v4")
SEEDS = (1000, 1001)
UNCHANGED = "nothing"
# More of what all others are compared with, which also tells how far seeds lie apart.
SEEDS_UNCHANGED = tuple(range(1000, 1008))


def policy(changed: str) -> dict[str, Any]:
    """With the initial standard deviation of `default`."""
    return {"policy_kwargs": f"dict(log_std_init=-1, {changed})"}


CHANGES: dict[str, dict[str, Any]] = {
    UNCHANGED: {},
    "2 environments of 1024 steps": {"n_envs": 2, "n_steps": 1024},
    "rollouts of 512": {"n_steps": 64},
    "rollouts of 1024": {"n_steps": 128},
    "rollouts of 4096": {"n_steps": 512},
    "rollouts of 8192": {"n_steps": 1024},
    "`target_kl` 0.003": {"target_kl": 0.003},
    "`target_kl` 0.01": {"target_kl": 0.01},
    "`target_kl` 0.02": {"target_kl": 0.02},
    "`target_kl` lin_0.01": {"target_kl": "lin_0.01"},
    "`target_kl` lin_0.04": {"target_kl": "lin_0.04"},
    "`gamma` 0.98": {"gamma": 0.98},
    "`gamma` 0.995": {"gamma": 0.995},
    "`gamma` 0.999": {"gamma": 0.999},
    "`gamma` lin_0.99_0.995": {"gamma": "lin_0.99_0.995"},
    "`gae_lambda` 0.9": {"gae_lambda": 0.9},
    "`gae_lambda` 0.98": {"gae_lambda": 0.98},
    "`n_critic_updates` 5": {"n_critic_updates": 5},
    "`n_critic_updates` 20": {"n_critic_updates": 20},
    "`batch_size` 32": {"batch_size": 32},
    "`batch_size` 512": {"batch_size": 512},
    "`learning_rate` 0.0003": {"learning_rate": 3e-4},
    "`learning_rate` 0.003": {"learning_rate": 3e-3},
    "`learning_rate` lin_0.002": {"learning_rate": "lin_0.002"},
    "observations as they are": {"normalize": "dict(norm_obs=False)"},
    "rewards as they are": {"normalize": "dict(norm_reward=False)"},
    "`normalize_advantage` off": {"normalize_advantage": False},
    "`log_std_init` 0": {"policy_kwargs": "dict(log_std_init=0)"},
    "`log_std_init` -2": {"policy_kwargs": "dict(log_std_init=-2)"},
    "`use_sde`, a new matrix every 4 steps": {"use_sde": True, "sde_sample_freq": 4},
    "`ent_coef` 0": {"ent_coef": 0.0},
    "`ent_coef` 0.003": {"ent_coef": 0.003},
    "`ent_coef` lin_0.01": {"ent_coef": "lin_0.01"},
    "a linear policy": policy("net_arch=dict(pi=[], vf=[64, 64])"),
    "a policy of (256, 256)": policy("net_arch=dict(pi=[256, 256], vf=[64, 64])"),
    "a critic of (256, 256)": policy("net_arch=dict(pi=[64, 64], vf=[256, 256])"),
    "ReLU": policy("activation_fn=nn.ReLU"),
    "weights not orthogonal at first": policy("ortho_init=False"),
    "`cg_max_steps` 5": {"cg_max_steps": 5},
    "`cg_max_steps` 40": {"cg_max_steps": 40},
    "`cg_damping` 0.01": {"cg_damping": 0.01},
    "`cg_damping` 0.1": {"cg_damping": 0.1},
}
Run = tuple[str, str, int]


def seeds_of(change: str) -> tuple[int, ...]:
    return SEEDS_UNCHANGED if change == UNCHANGED else SEEDS


def settings_of(run: Run) -> dict[str, Any]:
    return {**entries(zoo.hyperparams_file("trpo"))["default"], "n_timesteps": STEPS, **CHANGES[run[0]]}


def train(run: Run) -> dict[str, Any]:
    """The row of one run, which holds all that makes it."""
    change, env_id, seed = run
    with tempfile.TemporaryDirectory() as folder:
        _, _, curve = learn("trpo", env_id, seed, settings_of(run), folder, evaluations=5)
    return {
        "change": change,
        "env": env_id,
        "seed": seed,
        "mean_return": f"{np.mean(curve.rows[-1]['returns']):.6g}",
        "mean_on_the_way": f"{np.mean([np.mean(row['returns']) for row in curve.rows[:-1]]):.6g}",
        "seconds": curve.rows[-1]["seconds"],
        "settings": json.dumps(settings_of(run)),
        **results_file.described(),
    }


def row_of(run: Run, rows: list[dict[str, str]]) -> dict[str, str] | None:
    """None if there is no run with these settings."""
    _, env_id, seed = run
    settings = settings_of(run)
    same = [
        row for row in rows if (row["env"], row["seed"]) == (env_id, str(seed)) and json.loads(row["settings"]) == settings
    ]
    return same[-1] if same else None


def measured(change: str, env_id: str, column: str, rows: list[dict[str, str]]) -> list[float]:
    """One number for each seed that was run."""
    found = [row_of((change, env_id, seed), rows) for seed in seeds_of(change)]
    return [float(row[column]) for row in found if row]


def print_table() -> None:
    """
    One Markdown row a change, means over the seeds of the last policy's return and of the mean along the curve.

    What is unchanged has their standard deviation too, the others how far they are from it on average over the environments.
    """
    rows = results_file.read(FILE)
    print("| changed |", " | ".join(f"{env_id}, at the end | on the way" for env_id in ENVS), "| at the end | on the way |")
    print("|---|" + "---|---|" * (len(ENVS) + 1))
    columns = ("mean_return", "mean_on_the_way")
    for change in CHANGES:
        of = {(env, column): measured(change, env, column, rows) for env in ENVS for column in columns}
        if min(map(len, of.values())) < len(SEEDS):
            continue
        cells = [f"{statistics.mean(values):.4g}" for values in of.values()]
        if change == UNCHANGED:
            unchanged = {key: statistics.mean(values) for key, values in of.items()}
            cells = [f"{cell} ± {statistics.stdev(values):.3g}" for cell, values in zip(cells, of.values(), strict=True)]
            cells += ["", ""]
        else:
            ratios = {key: statistics.mean(values) / unchanged[key] for key, values in of.items()}
            cells += [f"{statistics.mean(ratios[env, column] for env in ENVS) - 1:+.0%}" for column in columns]
        print(f"| {change} |", " | ".join(cells), "|")


def main() -> None:
    args = results_file.parser(__doc__).parse_args()
    if not args.table:
        runs = [(change, env_id, seed) for change in CHANGES for seed in seeds_of(change) for env_id in ENVS]
        runs.sort(key=lambda run: run[2])
        rows = results_file.read(FILE)
        results_file.run_all(FILE, train, [run for run in runs if row_of(run, rows) is None], args.jobs)
    print_table()


if __name__ == "__main__":
    main()
