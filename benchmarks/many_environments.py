"""
What becomes of returns with many environments, and how long does a training take with them?

The same number of steps with a few environments and with many: through RL Zoo's ExperimentManager, as
`sb3-trpo-plus train --vec-env KIND` does it, without callbacks, on two cores with one thread for torch; then 20 deterministic
episodes in Gymnasium's own environment. One run at a time, since each uses both cores. The entries of
hyperparams/trpo_many.yml were chosen on seeds from 1000 on; the table is of seeds 0 to 4, run once.

    python benchmarks/many_environments.py            # what is missing (half an hour on two cores), print the table
    python benchmarks/many_environments.py --table    # only print what results/many_environments.csv has
    python benchmarks/many_environments.py --only HalfCheetah-v4 --seeds 1000 1001 --set n_steps=128    # for a look
"""

import contextlib
import os
import statistics
import tempfile
import time
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
import yaml
from results_file import add, described, parser, read
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import sync_envs_normalization

from sb3_trpo_plus import zoo

# Where RL Zoo's ExperimentManager is imported first, an opt-in comes too early to reach it.
zoo.register()

RESULTS = Path(__file__).parent / "results" / "many_environments.csv"
FEW, MANY = "trpo.yml", "trpo_many.yml"
KEY = ("env", "file", "entry", "vec_env", "changes")
SEEDS = (0, 1, 2, 3, 4)
# As far apart as in returns.py, since a VecEnv seeds its environments one apart.
EVALUATION_SEED = 3_000_000


class Case(NamedTuple):
    """
    :param env: Gymnasium id
    :param file: of hyperparameters
    :param entry: of that file
    :param vec_env: as ``--vec-env`` takes it
    :param changes: what is otherwise than in the entry
    """

    env: str
    file: str
    entry: str
    vec_env: str
    changes: dict[str, Any]


CASES = [
    Case("HalfCheetah-v4", FEW, "HalfCheetah-v4", "dummy", {}),
    Case("HalfCheetah-v4", MANY, "HalfCheetah-v4", "workers", {}),
    Case("HalfCheetah-v4", FEW, "default", "workers", {"n_envs": 256, "n_steps": 8}),
    Case("CartPole-v1", FEW, "CartPole-v1", "dummy", {}),
    Case("CartPole-v1", MANY, "CartPole-v1", "gymnasium", {}),
]


def settings_of(case: Case) -> dict[str, Any]:
    entries = yaml.safe_load((zoo.hyperparams_file("trpo").parent / case.file).read_text())
    return {**entries[case.entry], **case.changes}


def train(case: Case, seed: int) -> dict[str, Any]:
    """The row of a run."""
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    settings = settings_of(case)
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        config = Path(folder) / "config.yml"
        config.write_text(yaml.safe_dump({case.env: settings}))
        args = Namespace(algo="trpo", env=case.env, seed=seed, env_kwargs=None)
        manager = ExperimentManager(
            args, "trpo", case.env, folder, eval_freq=-1, seed=seed, verbose=0, device="cpu", config=str(config),
            vec_env_type=case.vec_env,
        )  # fmt: skip
        set_random_seed(seed)
        experiment = manager.setup_experiment()
        assert experiment is not None
        model, _ = experiment
        start = time.perf_counter()
        model.learn(int(settings["n_timesteps"]))
        seconds = time.perf_counter() - start
        manager.seed = EVALUATION_SEED + 100 * seed
        evaluation = manager.create_envs(1, eval_env=True)
        assert model.env is not None
        if model.get_vec_normalize_env() is not None:
            sync_envs_normalization(model.env, evaluation)
        returns, _ = evaluate_policy(model, evaluation, 20, return_episode_rewards=True, warn=False)
        model.env.close()
    return {
        **dict(zip(KEY, key(case), strict=True)),
        "n_envs": model.n_envs,
        "n_steps": settings["n_steps"],
        "seed": seed,
        "steps": model.num_timesteps,
        "seconds": round(seconds, 2),
        "return": round(float(np.mean(returns)), 2),
        **described(),
    }


def key(case: Case) -> tuple[str, ...]:
    """What tells the rows of a case from those of others."""
    return case.env, case.file, case.entry, case.vec_env, " ".join(f"{name}={value}" for name, value in case.changes.items())


def rows_of(case: Case) -> list[dict[str, str]]:
    return [row for row in read(RESULTS) if tuple(row[name] for name in KEY) == key(case)]


def print_table() -> None:
    """A Markdown row a case."""
    print("| environment | entry | `--vec-env` | environments x steps | seeds | return | seconds | steps/s |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        of_case = [row for row in rows_of(case) if int(row["seed"]) in SEEDS]
        if not of_case:
            continue
        returns, seconds = ([float(row[name]) for row in of_case] for name in ("return", "seconds"))
        spread = f" ± {statistics.stdev(returns):.4g}" if len(returns) > 1 else ""
        median, steps = statistics.median(seconds), int(of_case[0]["steps"])
        size = f"{of_case[0]['n_envs']} x {of_case[0]['n_steps']}"
        print(
            f"| {case.env} | `{case.file}`, {case.entry} | {case.vec_env} | {size} | {len(of_case)} "
            f"| {statistics.mean(returns):.4g}{spread} | {median:.3g} | {steps / median:,.0f} |"
        )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", help="cases of this environment")
    options.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    options.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change the entries for many, print alone")
    args = options.parse_args()
    cases = [case for case in CASES if args.only in (None, case.env)]
    if args.set:
        changes = {name: yaml.safe_load(value) for name, value in (word.split("=", 1) for word in args.set)}
        for case in cases:
            if case.file == MANY:
                rows = [train(case._replace(changes=changes), seed) for seed in args.seeds]
                returns = [row["return"] for row in rows]
                error = statistics.stdev(returns) / len(returns) ** 0.5 if len(returns) > 1 else 0.0
                print(case.env, args.set, f"{statistics.mean(returns):.1f}, standard error {error:.1f}", returns)
                print("   seconds", [row["seconds"] for row in rows])
        return
    if not args.table:
        # Seed by seed, so that all meet the same noise of the machine.
        for seed in args.seeds:
            for case in cases:
                if str(seed) not in [row["seed"] for row in rows_of(case)]:
                    add(RESULTS, train(case, seed))
    print_table()


if __name__ == "__main__":
    main()
