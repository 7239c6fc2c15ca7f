"""
The empirical Fisher matrix beside the Gauss-Newton form: the time of a product, and the improvement of the surrogate by the
steps of both from the same policy and rollout, at the same KL, over 50 updates of a real training.

    python benchmarks/fisher.py            # measure (five minutes), write benchmarks/results/fisher.csv, print the table
    python benchmarks/fisher.py --table    # only print it
"""

import argparse
import csv
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch as th
from cheaper_step import SETTINGS, Compared
from speed import make_env

from sb3_trpo_plus.policies.actor import actor_gradient
from sb3_trpo_plus.policies.distributions import action_distribution
from sb3_trpo_plus.policies.fisher import empirical_fisher_vector_product, fisher_vector_product
from sb3_trpo_plus.rollouts.sample import Sample

RESULTS = Path(__file__).parent / "results" / "fisher.csv"
WORKLOADS = ("CartPole-v1", "HalfCheetah-v4", "HalfCheetah-v4 256x256")
UPDATES = 50
QUARTILES = ("low", "median", "high")


class ComparedFisher(Compared):
    """Takes the Gauss-Newton step, after trying the empirical one from the same policy on the same rollout."""

    options: ClassVar[dict[str, dict[str, Any]]] = {"empirical": {"fisher": "empirical"}}


def milliseconds(product: Callable[[th.Tensor], th.Tensor], n_parameters: int) -> float:
    """Of a product: the median of five rounds of ten."""
    vector, times = th.randn(n_parameters), []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(10):
            product(vector)
        times.append((time.perf_counter() - start) * 100)
    return statistics.median(times)


def measure(name: str) -> dict[str, Any]:
    """One row."""
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    env_id, settings, _ = SETTINGS[name]
    model = ComparedFisher("MlpPolicy", make_env(env_id, 0), seed=0, device="cpu", **settings)
    model.gains = []
    model.learn(UPDATES * model.n_steps * model.n_envs)
    sample: Sample = model._sample()
    distribution = action_distribution(model.policy, sample.observations)
    parameters, gradient = actor_gradient(model.policy, model._surrogate(distribution, sample))
    gauss_newton = fisher_vector_product(model.policy, sample.observations, parameters)
    empirical = empirical_fisher_vector_product(model.policy, sample.observations, sample.actions, parameters)
    # Of each update, since single ones with ratios of probabilities far from 1 would rule a mean.
    low, median, high = statistics.quantiles([gains["empirical"] / gains["full"] for gains in model.gains], n=4)
    return {
        "workload": name,
        "states": len(sample.old_log_prob),
        "parameters": len(gradient),
        "ms_gauss_newton": round(milliseconds(gauss_newton, len(gradient)), 3),
        "ms_empirical": round(milliseconds(empirical, len(gradient)), 3),
        "improvement_low": round(low, 3),
        "improvement_median": round(median, 3),
        "improvement_high": round(high, 3),
        "torch": th.__version__,
    }


def print_table() -> None:
    """One Markdown row a workload."""
    print("| workload | states | parameters | ms a product, Gauss-Newton | empirical | improvement: quartiles |")
    print("|---|---|---|---|---|---|")
    with RESULTS.open() as file:
        for row in csv.DictReader(file):
            cells = [row[key] for key in ("workload", "states", "parameters", "ms_gauss_newton", "ms_empirical")]
            print(f"| {' | '.join(cells)} | {', '.join(row[f'improvement_{which}'] for which in QUARTILES)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    if not parser.parse_args().table:
        rows = [measure(name) for name in WORKLOADS]
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print_table()


if __name__ == "__main__":
    main()
