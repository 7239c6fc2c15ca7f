"""
How far does the theory's step go? Conservative policy iteration, the paper's Algorithm 1 and the exact trust region on finite
MDPs, from the uniform policy.

Writes benchmarks/results/tabular.csv, one row an MDP and algorithm, and docs/images/tabular.png, and prints the table. Takes a
minute or two; nothing is random but the random MDP, whose seed is fixed.

    python benchmarks/tabular.py
    python benchmarks/tabular.py --table    # only print the table of what is there
    python benchmarks/tabular.py --draw     # only draw
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import colours
import numpy as np
import results_file
from matplotlib.figure import Figure

from sb3_trpo_plus.tabular import (
    FiniteMDP,
    Iteration,
    algorithm_1,
    conservative_policy_iteration,
    expected_return,
    trust_region,
)

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "tabular.csv"
PICTURE = ROOT.parent / "docs" / "images" / "tabular.png"
ITERATIONS = 1000
DELTA = 0.01
ALGORITHMS: dict[str, Callable[[FiniteMDP], list[Iteration]]] = {
    "conservative policy iteration": lambda mdp: conservative_policy_iteration(mdp, mdp.uniform_policy(), ITERATIONS),
    "Algorithm 1": lambda mdp: algorithm_1(mdp, mdp.uniform_policy(), ITERATIONS),
    f"trust region, mean KL {DELTA:g}": lambda mdp: trust_region(mdp, mdp.uniform_policy(), ITERATIONS, DELTA),
}
COLOURS = (colours.MEMBER, colours.OTHER_MEMBER, colours.OURS)
DRAWN = "random, 10 states, 4 actions"
MDPS: dict[str, Callable[[float], FiniteMDP]] = {
    DRAWN: lambda gamma: FiniteMDP.random(10, 4, gamma, seed=0),
    "FrozenLake-v1": lambda gamma: FiniteMDP.from_gymnasium("FrozenLake-v1", gamma),
    "CliffWalking-v1": lambda gamma: FiniteMDP.from_gymnasium("CliffWalking-v1", gamma),
}
GAMMAS = (0.8, 0.99)
DRAWN_GAMMA = 0.8
Runs = dict[str, list[Iteration]]


def optimal_return(mdp: FiniteMDP) -> float:
    """By value iteration."""
    values = np.zeros(mdp.n_states)
    while True:
        before, values = values, (mdp.rewards + mdp.gamma * mdp.transitions @ values).max(axis=1)
        if np.abs(values - before).max() <= 1e-12 * np.abs(values).max():
            return float(mdp.initial @ values)


def first_to_cover(share: float, start: float, optimum: float, run: list[Iteration]) -> int | None:
    """The number of updates that cover a share of the way from the first return to the optimal one."""
    target = start + share * (optimum - start)
    return next((i for i, iteration in enumerate(run, 1) if iteration.expected_return >= target), None)


def rows_of(name: str, mdp: FiniteMDP, runs: Runs) -> list[dict[str, str | float | int | None]]:
    start, optimum = expected_return(mdp, mdp.uniform_policy()), optimal_return(mdp)
    return [
        {
            "mdp": name,
            "gamma": mdp.gamma,
            "algorithm": algorithm,
            "max_kl_of_first_update": f"{run[0].max_kl:.2g}",
            "updates_to_half": first_to_cover(0.5, start, optimum, run),
            "start": f"{start:.4g}",
            "after_100": f"{run[99].expected_return:.4g}",
            f"after_{ITERATIONS}": f"{run[-1].expected_return:.4g}",
            "optimal": f"{optimum:.4g}",
        }
        for algorithm, run in runs.items()
    ]


def draw() -> None:
    """Left: returns and bounds; right: how far each update moves the policy."""
    mdp = MDPS[DRAWN](DRAWN_GAMMA)
    optimum = optimal_return(mdp)
    figure = Figure(figsize=(colours.WIDTH, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    updates = range(1, ITERATIONS + 1)
    for (name, algorithm), colour in zip(ALGORITHMS.items(), COLOURS, strict=True):
        run = algorithm(mdp)
        left.plot(updates, [iteration.expected_return for iteration in run], color=colour, linewidth=2, label=name)
        # Updates that change nothing have no place on a log axis, and a bound that says nothing.
        moves = [(i, iteration) for i, iteration in zip(updates, run, strict=True) if iteration.max_kl > 0]
        when = [i for i, _ in moves]
        left.plot(when, [iteration.lower_bound for _, iteration in moves], ":", linewidth=2.5, color=colour)
        right.plot(when, [iteration.max_kl for _, iteration in moves], color=colour, linewidth=2)
    left.plot([], [], ":", linewidth=2.5, color="black", label="lower bound of each")
    left.axhline(optimum, color="black", linestyle="--", linewidth=1, label="optimal return")
    left.set(xscale="log", xlabel="number of the update", ylabel="expected return", title="Return and its lower bound")
    # The bound of late trust region steps is far below.
    left.set_ylim(-optimum / 2, 1.1 * optimum)
    right.set(xscale="log", yscale="log", xlabel="number of the update", ylabel="largest KL of any state, nats")
    right.set_title("How far an update moves the policy")
    right.set_ylim(bottom=1e-9)
    for axes in (left, right):
        axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(PICTURE, dpi=colours.DPI)


HEADER = {
    "mdp": "MDP",
    "gamma": "$\\gamma$",
    "algorithm": "algorithm",
    "max_kl_of_first_update": "max KL of the first update",
    "updates_to_half": "updates to half of the way",
    "start": "return at first",
    "after_1000": "after 1000 updates",
    "optimal": "optimal",
}


def print_table() -> None:
    """As Markdown."""
    with RESULTS.open() as file:
        rows = list(csv.DictReader(file))
    print(f"| {' | '.join(HEADER.values())} |\n{'|---' * len(HEADER)}|")
    for row in rows:
        print(f"| {' | '.join(row[column] for column in HEADER)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    parser.add_argument("--draw", action="store_true", help="only draw, which takes the runs of one MDP")
    args = parser.parse_args()
    results_file.carry_out(args, compute, draw, print_table)


def compute() -> None:
    """Write the results."""
    rows = []
    for gamma in GAMMAS:
        for name, make in MDPS.items():
            mdp = make(gamma)
            runs = {algorithm: run(mdp) for algorithm, run in ALGORITHMS.items()}
            rows += rows_of(name, mdp, runs)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
