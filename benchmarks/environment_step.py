"""
Why does the environment itself take longer while a library learns? The time of an ``env.step`` after other work.

Two environments are stepped with random actions, and before each step something else is done: nothing, a matrix product, the
policy's ``forward`` as sb3-contrib calls it at each step, or a pass over more memory than the second-level cache holds. Beside
that step, the one that follows at once (whose caches are warm again, while a lowered clock would still be low) and a Python
loop (which needs no caches, and shows the clock alone). Medians over the steps, which other programs hardly disturb.

    python benchmarks/environment_step.py            # measure (a minute), write results/environment_step.csv, print the table
    python benchmarks/environment_step.py --table    # only print the table
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import results_file
import speed
import torch as th
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.ppo import MlpPolicy

RESULTS = Path(__file__).parent / "results" / "environment_step.csv"
ENVIRONMENTS = ("CartPole-v1", "HalfCheetah-v4")
STEPS, ROUNDS = 1500, 3
BYTES = 4 * 2**20
COLUMNS = {"env_step": "`env.step`", "next_env_step": "the next `env.step`", "python_loop": "a Python loop"}


def work(env: Any) -> dict[str, Callable[[], object]]:
    """What may come before a step, by what the table calls it."""
    policy = MlpPolicy(env.observation_space, env.action_space, lambda _: 1e-3)
    observations, memory = obs_as_tensor(env.reset(), policy.device), np.zeros(BYTES // 8)
    weights, inputs = th.randn(64, 64), th.randn(2, 64)

    def forward() -> None:
        with th.no_grad():
            policy(observations)

    return {
        "nothing": lambda: None,
        "a 64 x 64 product by torch": lambda: inputs @ weights,
        "the policy's `forward`": forward,
        f"reading {BYTES >> 20} MiB": memory.sum,
    }


def loop() -> None:
    for _ in range(1000):
        pass


def microseconds(before: Callable[[], object], *then: Callable[[], object]) -> float:
    """Median time of the last of some calls."""
    times = []
    for _ in range(STEPS):
        before()
        for call in then[:-1]:
            call()
        start = time.perf_counter()
        then[-1]()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def measure(name: str) -> list[dict[str, Any]]:
    """A row for each kind of work; of the rounds, in which these alternate, the lowest median counts."""
    env = speed.make_env(name, 0)
    kinds = work(env)
    actions = [np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(64)]

    def step() -> None:
        actions.append(actions.pop(0))
        env.step(actions[0])

    found: dict[str, dict[str, list[float]]] = {kind: {column: [] for column in COLUMNS} for kind in kinds}
    for _ in range(ROUNDS):
        for kind, before in kinds.items():
            for column, then in zip(COLUMNS, ([step], [step, step], [loop]), strict=True):
                found[kind][column].append(microseconds(before, *then))
    return [
        {
            "env": name,
            "before": kind,
            **{column: f"{min(times):.1f}" for column, times in columns.items()},
            **results_file.described(),
        }
        for kind, columns in found.items()
    ]


def print_table() -> None:
    """As Markdown."""
    print(f"| two environments | before each step | {', us | '.join(COLUMNS.values())}, us |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for row in results_file.read(RESULTS):
        print(f"| {row['env']} | {row['before']} | {' | '.join(row[column] for column in COLUMNS)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    if not parser.parse_args().table:
        warnings.simplefilter("ignore")
        th.set_num_threads(1)
        rows = [row for name in ENVIRONMENTS for row in measure(name)]
        RESULTS.unlink(missing_ok=True)
        for row in rows:
            results_file.add(RESULTS, row)
    print_table()


if __name__ == "__main__":
    main()
