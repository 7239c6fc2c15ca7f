"""
Statistics of the runs of returns.py, as pictures in docs/images: interquartile means and probabilities of improvement, with
stratified bootstrap intervals (rliable), and learning curves over steps and over wall-clock time.

    python benchmarks/returns_pictures.py
"""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from returns import STUDIES, best_published, curves, file_of, published
from rliable import library, metrics, plot_utils

Scores = npt.NDArray[np.float64]
PICTURES = Path(__file__).parents[1] / "docs" / "images"
NAMES = {
    "tuned": "ours (tuned)",
    "fresh": "ours (seeds 5 to 9)",
    "default": "ours (default)",
    "sb3_contrib": "sb3-contrib's TRPO",
    "ppo": "SB3's PPO",
}
COLORS = dict(zip(NAMES.values(), ("tab:blue", "tab:purple", "tab:cyan", "tab:orange", "tab:green"), strict=True))
REPETITIONS = 2000


def evaluations(study: str, env_id: str) -> Scores:
    """Mean returns, shape (seeds, evaluations), of the runs that have a file."""
    return np.array([[np.mean(row["returns"]) for row in rows] for rows in curves(study, env_id).values()])


def scores(study: str, peer: str) -> Scores:
    """
    Returns over the best published one, on the tasks of a peer's study.

    :return: shape (seeds, tasks, evaluations)
    """
    tasks = STUDIES[peer].envs
    return np.stack([evaluations(study, env_id) / best_published(env_id) for env_id in tasks], axis=1)


def intervals(of: dict[str, Any], func: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """rliable's point and interval estimates, always from the same resampling."""
    # rliable draws from NumPy's global generator, whatever random state it is given.
    np.random.seed(0)  # noqa: NPY002
    points, ranges = library.get_interval_estimates(of, func, reps=REPETITIONS)
    return points, ranges


def draw_interquartile_means(peers: list[str]) -> Figure:
    """Of the last policies, a panel for each set of tasks."""
    figure = Figure(figsize=(10, 0.8 + 0.5 * len(NAMES)), layout="constrained")
    for axes, peer in zip(figure.subplots(1, len(peers), squeeze=False)[0], peers, strict=True):
        of = {NAMES[study]: scores(study, peer)[:, :, -1] for study in members(peer)}
        points, ranges = intervals(of, lambda x: np.array([metrics.aggregate_iqm(x)]))
        for place, name in enumerate(reversed(of)):
            low, high = ranges[name][:, 0]
            axes.barh(place, high - low, left=low, height=0.6, color=COLORS[name], alpha=0.7)
            axes.plot([points[name][0]] * 2, [place - 0.3, place + 0.3], color="black")
        axes.set_yticks(range(len(of)), list(reversed(of)))
        axes.set(title=tasks_in_words(peer), xlabel="interquartile mean of return / best published")
        axes.grid(alpha=0.3, axis="x")
        # A bar that begins at the axis looks cut off.
        left, right = axes.get_xlim()
        axes.set_xlim(left - 0.05 * (right - left))
    return figure


def draw_improvements(peers: list[str]) -> Figure:
    """How likely a run of ours ends above one of a peer's, on a task drawn at random."""
    pairs = {
        f"{NAMES[ours]},{NAMES[peer]}": (scores(ours, peer)[:, :, -1], scores(peer, peer)[:, :, -1])
        for peer in peers
        for ours in ("tuned", "fresh", "default")
    }
    points, ranges = intervals(pairs, metrics.probability_of_improvement)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    plot_utils.plot_probability_of_improvement(points, ranges, ax=axes, xticks=[0, 0.25, 0.5, 0.75, 1])
    return figure


def draw_curves(peers: list[str]) -> Figure:
    """Interquartile mean by environment steps, a panel for each set of tasks."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, peer in zip(figure.subplots(1, len(peers), squeeze=False)[0], peers, strict=True):
        of = {NAMES[study]: scores(study, peer)[:, :, :-1] for study in members(peer)}
        points, ranges = intervals(
            of, lambda x: np.array([metrics.aggregate_iqm(x[:, :, index]) for index in range(x.shape[-1])])
        )
        millions = np.linspace(0, 1, 21)[1:]
        plot_utils.plot_sample_efficiency_curve(
            millions, points, ranges, algorithms=list(of), colors=COLORS, ax=axes, labelsize="medium", ticklabelsize="medium",
            xlabel="environment steps (millions)", ylabel="interquartile mean of return / best published",
        )  # fmt: skip
        axes.set_title(tasks_in_words(peer))
        axes.legend()
    return figure


def draw_wall_clock(axes: Axes, env_id: str) -> None:
    """Every seed's curve over its time on one core, and the published figure of PPO."""
    drawn: set[Path] = set()
    for study, name in NAMES.items():
        if env_id not in STUDIES[study].envs:
            continue
        for seed, rows in curves(study, env_id).items():
            file = file_of((study, env_id, seed))
            if file not in drawn:
                drawn.add(file)
                # The last evaluation on the way is a rollout before the one at the end, of a quarter of the episodes.
                shown = [*rows[:-2], rows[-1]]
                minutes = [row["seconds"] / 60 for row in shown]
                label = name if seed == STUDIES[study].seeds[0] else None
                axes.plot(minutes, [np.mean(row["returns"]) for row in shown], color=COLORS[name], label=label, alpha=0.8)
    figure, _ = published(env_id, "PPO") or (np.nan, 0)
    axes.axhline(figure, color="black", linestyle=":", label=f"PPO's published {figure:.0f}")
    axes.set(xlabel="minutes on one core", ylabel="return of an episode", xscale="log", title=env_id)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def members(peer: str) -> list[str]:
    """Studies that have all their seeds of every task of a peer's."""
    return [
        study
        for study in NAMES
        if all(len(evaluations(study, env_id)) == len(STUDIES[study].seeds) for env_id in STUDIES[peer].envs)
    ]


def tasks_in_words(peer: str) -> str:
    return textwrap.fill(", ".join(env_id.split("-")[0] for env_id in STUDIES[peer].envs), 36)


def main() -> None:
    peers = ["sb3_contrib", "ppo"]
    incomplete = [peer for peer in peers if peer not in members(peer)]
    if incomplete:
        raise SystemExit(f"python benchmarks/returns.py --studies {' '.join(incomplete)} comes first")
    wall_clock = Figure(figsize=(10, 4.5), layout="constrained")
    draw_wall_clock(wall_clock.subplots(), "HalfCheetah-v4")
    for name, figure in {
        "interquartile_means": draw_interquartile_means(peers),
        "improvements": draw_improvements(peers),
        "curves": draw_curves(peers),
        "wall_clock": wall_clock,
    }.items():
        # rliable puts text outside of the axes.
        figure.savefig(PICTURES / f"returns_{name}.png", dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
