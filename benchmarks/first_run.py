"""
Do the first environments that anyone tries get solved, on every seed? Ours beside sb3-contrib's, with the same settings.

Trains with RL Zoo's entries, and with that of hyperparams/trpo.yml where sb3-contrib can take it too; evaluates the last
policy over 20 deterministic episodes, and writes one CSV row a run to benchmarks/results/first_run.csv. Runs that have a row
are skipped, so it can be stopped and started again.

    python benchmarks/first_run.py            # run what is missing, then print the table
    python benchmarks/first_run.py --table    # only print it
"""

import platform
import time
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import results_file
import sb3_contrib
import stable_baselines3
import torch as th
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_trpo_plus

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "first_run.csv"
SOLVED = {"CartPole-v1": 475.0, "Pendulum-v1": -250.0}
LIBRARIES: dict[str, Any] = {"sb3_trpo_plus": sb3_trpo_plus, "sb3_contrib": sb3_contrib}
SETTINGS = {
    "ours": yaml.safe_load((ROOT.parent / "hyperparams" / "trpo.yml").read_text()),
    "rl_zoo3": yaml.safe_load((files("rl_zoo3") / "hyperparams" / "trpo.yml").read_text()),
}
# Our entry of Pendulum has what sb3-contrib has not, such as a schedule of target_kl.
COMPARED = {"CartPole-v1": ("ours", "rl_zoo3"), "Pendulum-v1": ("rl_zoo3",)}
SEEDS = range(10)
EPISODES = 20
Run = tuple[str, str, str, int]


def train(run: Run) -> dict[str, Any]:
    """Train and evaluate one agent, on one thread."""
    library, env_id, whose, seed = run
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    settings = dict(SETTINGS[whose][env_id])
    n_envs, n_timesteps = settings.pop("n_envs"), int(settings.pop("n_timesteps"))
    model = LIBRARIES[library].TRPO(env=make_vec_env(env_id, n_envs, seed=seed), seed=seed, device="cpu", **settings)
    start = time.perf_counter()
    model.learn(n_timesteps)
    seconds = time.perf_counter() - start
    env = make_vec_env(env_id, 1, seed=10_000 + seed)
    returns, _ = evaluate_policy(model, env, EPISODES, return_episode_rewards=True)
    return {
        "library": library,
        "version": LIBRARIES[library].__version__,
        "env": env_id,
        "settings": whose,
        "seed": seed,
        "steps": model.num_timesteps,
        "mean_return": round(float(np.mean(returns)), 2),
        "std_return": round(float(np.std(returns)), 2),
        "seconds": round(seconds, 1),
        "stable_baselines3": stable_baselines3.__version__,
        "torch": th.__version__,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, 1 thread",
    }


def run_missing(jobs: int) -> None:
    """Train what has no row yet; the libraries alternate, so that both meet the same noise of the machine."""
    done = {(row["library"], row["env"], row["settings"], int(row["seed"])) for row in results_file.read(RESULTS)}
    runs = [
        (library, env, whose, seed) for env in SOLVED for whose in COMPARED[env] for seed in SEEDS for library in LIBRARIES
    ]
    missing = [run for run in runs if run not in done]
    results_file.run_all(RESULTS, train, missing, jobs)


def print_table() -> None:
    """One Markdown row an environment, settings and library."""
    print("| environment | settings | library | steps | solved at | seeds that solve it | mean return of each seed |")
    print("|---|---|---|---|---|---|---|")
    for env, threshold in SOLVED.items():
        for whose in COMPARED[env]:
            for library in LIBRARIES:
                rows = [
                    r for r in results_file.read(RESULTS) if (r["env"], r["settings"], r["library"]) == (env, whose, library)
                ]
                if not rows:
                    continue
                means = [float(row["mean_return"]) for row in sorted(rows, key=lambda row: int(row["seed"]))]
                solved = f"{sum(mean >= threshold for mean in means)} of {len(means)}"
                returns = ", ".join(f"{mean:.0f}" for mean in means)
                name = f"{library} {rows[0]['version']}"
                print(f"| {env} | {whose} | {name} | {rows[0]['steps']} | {threshold:g} | {solved} | {returns} |")


def main() -> None:
    args = results_file.parser(__doc__).parse_args()
    if not args.table:
        run_missing(args.jobs)
    print_table()


if __name__ == "__main__":
    main()
