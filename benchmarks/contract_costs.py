"""
What a callback of one's own costs, which makes collection go step by step.

Both libraries, with no callback, with one that does nothing, with one that reads the values at each step and with one that
reads the rollout buffer at each step, take turns in one process; the medians of the repeats are compared.

    python benchmarks/contract_costs.py            # measure (five minutes), write results/contract_costs.csv, print the table
    python benchmarks/contract_costs.py --table    # only print the table
"""

import argparse
import csv
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sb3_contrib
import torch as th
from results_file import described
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

import sb3_trpo_plus

RESULTS = Path(__file__).parent / "results" / "contract_costs.csv"
LIBRARIES: dict[str, Any] = {"sb3_contrib": sb3_contrib.TRPO, "ours": sb3_trpo_plus.TRPO}
ENVIRONMENTS = {"CartPole-v1": 6, "HalfCheetah-v4": 2}
N_STEPS, N_ENVS = 1024, 2


class Callback(BaseCallback):
    """Calls a function with itself at each step."""

    def __init__(self, function: Callable[["Callback"], object]) -> None:
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        self.function(self)
        return True


CALLBACKS: dict[str, Callable[[], Callback | None]] = {
    "none": lambda: None,
    "does nothing": lambda: Callback(lambda _: None),
    "reads the values": lambda: Callback(lambda callback: callback.locals["values"].mean().item()),
    "reads the buffer": lambda: Callback(lambda callback: callback.locals["rollout_buffer"].values.sum()),
}


def seconds(library: str, env: str, callback: str) -> float:
    """Of learn() for some rollouts, after one to warm up."""
    model = LIBRARIES[library]("MlpPolicy", make_vec_env(env, N_ENVS, seed=0), n_steps=N_STEPS, seed=0, device="cpu")
    model.learn(N_STEPS * N_ENVS)
    start = time.perf_counter()
    model.learn(ENVIRONMENTS[env] * N_STEPS * N_ENVS, CALLBACKS[callback]())
    return time.perf_counter() - start


def measure(repeats: int) -> list[dict[str, Any]]:
    rows = []
    for env, n_rollouts in ENVIRONMENTS.items():
        subjects = [(library, callback) for library in LIBRARIES for callback in CALLBACKS]
        found: dict[tuple[str, str], list[float]] = {subject: [] for subject in subjects}
        for _ in range(repeats):
            for library, callback in subjects:
                found[library, callback].append(seconds(library, env, callback))
        for (library, callback), times in found.items():
            median = statistics.median(times)
            rows.append(
                {
                    "env": env,
                    "library": library,
                    "callback": callback,
                    "seconds": f"{median:.4f}",
                    "lowest": f"{min(times):.4f}",
                    "highest": f"{max(times):.4f}",
                    "microseconds_a_step_of_all": f"{median / (n_rollouts * N_STEPS) * 1e6:.1f}",
                    **described(),
                }
            )
    return rows


def table(rows: list[dict[str, str]]) -> None:
    print("| environment, 2 of them | callback | sb3-contrib | ours | ours is faster by |\n|---|---|---|---|---|")
    for env in ENVIRONMENTS:
        for callback in CALLBACKS:
            found = {row["library"]: row for row in rows if (row["env"], row["callback"]) == (env, callback)}
            theirs, ours = (float(found[library]["microseconds_a_step_of_all"]) for library in LIBRARIES)
            print(f"| {env} | {callback} | {theirs:.0f} us a step | {ours:.0f} us a step | {theirs / ours:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table of what was measured")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if not args.table:
        warnings.simplefilter("ignore")
        th.set_num_threads(1)
        rows = measure(args.repeats)
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    with RESULTS.open() as file:
        table(list(csv.DictReader(file)))


if __name__ == "__main__":
    main()
