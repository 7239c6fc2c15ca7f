"""
Does every member of the family solve CartPole-v1 and Pendulum-v1, on five seeds, and in how many steps?

Trains with the entries of hyperparams/ (TRPO with NPG's), evaluates on the way (5 deterministic episodes every 5,000 steps)
and at the end (20), and writes one CSV row a run to benchmarks/results/family.csv. Runs that have a row are skipped, so it can
be stopped and started again.

    python benchmarks/family.py            # run what is missing (half an hour on two cores), print the table, draw the curves
    python benchmarks/family.py --table    # only print the table of what is there
    python benchmarks/family.py --draw     # only draw the curves of what is there
"""

import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import colours
import numpy as np
import results_file
import torch as th
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trpo_plus import zoo

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "family.csv"
PICTURE = ROOT.parent / "docs" / "images" / "family.png"
SOLVED = {"CartPole-v1": 475.0, "Pendulum-v1": -250.0}
# TRPO is given what NPG is, so that the two differ in the step alone.
ENTRIES = {"trpo": "npg"}
MEMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "TRPO": ("trpo", {}),
    'TRPO, fisher="empirical"': ("trpo", {"fisher": "empirical"}),
    'TRPO, kl_constraint="max"': ("trpo", {"kl_constraint": "max", "target_kl": 0.1}),
    "NPG": ("npg", {}),
    "NPG, step_size=0.3": ("npg", {"step_size": 0.3}),
    "VineTRPO": ("trpo_vine", {}),
    'PPOPenalty, penalty="adaptive"': ("ppo_penalty", {}),
    'PPOPenalty, penalty="dual"': ("ppo_penalty", {"penalty": "dual"}),
}
# Drawn together, each time beside TRPO.
PANELS = (
    ('TRPO, fisher="empirical"', 'TRPO, kl_constraint="max"'),
    ("NPG", "NPG, step_size=0.3"),
    ('PPOPenalty, penalty="adaptive"', 'PPOPenalty, penalty="dual"'),
    ("VineTRPO",),
)
SEEDS = range(5)
EVERY = 5_000
Run = tuple[str, str, int]


class Curve(BaseCallback):
    """Evaluates every so many steps."""

    def __init__(self, env_id: str, seed: int) -> None:
        super().__init__()
        self.env = make_vec_env(env_id, 1, seed=20_000 + seed)
        self.points: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        if self.num_timesteps >= EVERY * (len(self.points) + 1):
            generator, numpys = th.get_rng_state(), np.random.get_state()  # noqa: NPY002
            mean, _ = evaluate_policy(self.model, self.env, 5)
            th.set_rng_state(generator)
            np.random.set_state(numpys)  # noqa: NPY002
            assert isinstance(mean, float)
            self.points.append((self.num_timesteps, round(mean, 1)))
        return True


def train(run: Run) -> dict[str, Any]:
    """Train and evaluate one agent, on one thread."""
    member, env_id, seed = run
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    algo, options = MEMBERS[member]
    entries = yaml.safe_load(zoo.hyperparams_file(ENTRIES.get(algo, algo)).read_text())
    settings = {**entries[env_id], **options}
    n_envs, n_timesteps = settings.pop("n_envs"), int(settings.pop("n_timesteps"))
    algorithm: Any = zoo.ALGORITHMS[algo]
    model = algorithm(env=make_vec_env(env_id, n_envs, seed=seed), seed=seed, device="cpu", **settings)
    curve = Curve(env_id, seed)
    start = time.perf_counter()
    model.learn(n_timesteps, curve)
    seconds = time.perf_counter() - start
    returns, _ = evaluate_policy(model, make_vec_env(env_id, 1, seed=10_000 + seed), 20, return_episode_rewards=True)
    solved_at = next((steps for steps, mean in curve.points if mean >= SOLVED[env_id]), "")
    return {
        "member": member,
        "env": env_id,
        "seed": seed,
        "steps": model.num_timesteps,
        "mean_return": round(float(np.mean(returns)), 2),
        "std_return": round(float(np.std(returns)), 2),
        "solved_at": solved_at,
        "seconds": round(seconds, 1),
        **results_file.described(),
        "curve": " ".join(f"{steps}:{mean}" for steps, mean in curve.points),
    }


def run_missing(jobs: int) -> None:
    """Train what has no row yet, seed by seed."""
    done = {(row["member"], row["env"], int(row["seed"])) for row in results_file.read(RESULTS)}
    runs = [(member, env, seed) for seed in SEEDS for env in SOLVED for member in MEMBERS]
    missing = [run for run in runs if run not in done]
    results_file.run_all(RESULTS, train, missing, jobs)


def rows_of(member: str, env: str) -> list[dict[str, str]]:
    """By seed."""
    found = [row for row in results_file.read(RESULTS) if (row["member"], row["env"]) == (member, env)]
    return sorted(found, key=lambda row: int(row["seed"]))


def print_table() -> None:
    """One Markdown row an environment and member."""
    print(
        "| environment | member | steps | solved at | seeds that solve it | after steps (median) | mean return of each seed |"
    )
    print("|---|---|---|---|---|---|---|")
    for env, threshold in SOLVED.items():
        for member in MEMBERS:
            rows = rows_of(member, env)
            if not rows:
                continue
            means = [float(row["mean_return"]) for row in rows]
            solved = f"{sum(mean >= threshold for mean in means)} of {len(means)}"
            first = [float(row["solved_at"] or "inf") for row in rows]
            after = f"{statistics.median(first):,.0f}" if statistics.median(first) < float("inf") else "never"
            returns = ", ".join(f"{mean:.0f}" for mean in means)
            steps = f"{int(rows[0]['steps']):,}"
            print(f"| {env} | {member} | {steps} | {threshold:g} | {solved} | {after} | {returns} |")


def draw() -> None:
    """Mean over the seeds and their range, by environment steps: a column for each environment, TRPO in every panel."""
    figure = Figure(figsize=(colours.WIDTH, 8.6), layout="constrained")
    all_axes = figure.subplots(len(PANELS), len(SOLVED), sharex=True, sharey="col")
    for column, (env, threshold) in enumerate(SOLVED.items()):
        for axes, members in zip(all_axes[:, column], PANELS, strict=True):
            shown = dict(zip(members, (colours.MEMBER, colours.OTHER_MEMBER), strict=False))
            for member, colour in {"TRPO": colours.REFERENCE, **shown}.items():
                draw_curve(axes, rows_of(member, env), colour, member)
            axes.axhline(threshold, color="black", linewidth=0.8, linestyle=":")
            axes.set(xscale="log", xlim=(4_500, 450_000))
            if env == "CartPole-v1":
                # There is room below for the legend.
                axes.set_ylim(bottom=0)
                axes.legend(loc="lower right", fontsize="small")
            axes.grid(alpha=0.3)
            axes.yaxis.set_major_formatter("{x:,.0f}")
        all_axes[0, column].set_title(f"{env}, solved at {threshold:g} (dotted)", fontsize="medium")
        all_axes[-1, column].set_xlabel("environment steps, branches included")
        ticks = [5_000, 20_000, 100_000, 400_000]
        all_axes[-1, column].set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        all_axes[-1, column].set_xticks([], minor=True)
    figure.supylabel("return of an episode: mean and range of five seeds", fontsize="medium")
    figure.savefig(PICTURE, dpi=colours.DPI)


def draw_curve(axes: Axes, rows: list[dict[str, str]], colour: str, label: str) -> None:
    """The seeds' mean, and their range as an area."""
    curves = [[point.split(":") for point in row["curve"].split()] for row in rows]
    if not curves:
        return
    # The vine's rollouts, and with them its runs, are not all of the same length.
    steps = [int(step) for step, _ in min(curves, key=len)]
    returns = np.array([[float(mean) for _, mean in curve[: len(steps)]] for curve in curves])
    axes.plot(steps, returns.mean(axis=0), color=colour, linewidth=1.8, label=label)
    axes.fill_between(steps, returns.min(axis=0), returns.max(axis=0), color=colour, alpha=0.18, linewidth=0)


def main() -> None:
    parser = results_file.parser(__doc__)
    parser.add_argument("--draw", action="store_true", help="only draw what is there")
    args = parser.parse_args()
    results_file.carry_out(args, lambda: run_missing(args.jobs), draw, print_table)


if __name__ == "__main__":
    main()
