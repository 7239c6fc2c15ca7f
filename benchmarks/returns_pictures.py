"""
Statistics of the runs of returns.py, as pictures in docs/images: interquartile means and probabilities of improvement, with
stratified bootstrap intervals (rliable), and learning curves over steps and over wall-clock time.

    python benchmarks/returns_pictures.py
"""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import colours
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter
from returns import STUDIES, best_published, curves, file_of, published
from rliable import library, metrics

Scores = npt.NDArray[np.float64]
PICTURES = Path(__file__).parents[1] / "docs" / "images"
NAMES = {
    "tuned": "ours, tuned",
    "fresh": "ours, seeds 5 to 9",
    "default": "ours, default",
    "sb3_contrib": "sb3-contrib's TRPO",
    "ppo": "SB3's PPO",
}
COLOURS = {
    "tuned": colours.OURS,
    "fresh": colours.OURS_ON_OTHER_SEEDS,
    "default": colours.OURS_WITH_DEFAULT,
    "sb3_contrib": colours.SB3_CONTRIB,
    "ppo": colours.PPO,
}
OURS = ("tuned", "fresh", "default")
PEERS = ("sb3_contrib", "ppo")
REPETITIONS = 2000
# An interval is read on a dark bar as well.
ON_A_BAR = [withStroke(linewidth=3.5, foreground="white")]


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


def draw_bars(axes: Axes, studies: Sequence[str], points: dict[str, Any], ranges: dict[str, Any], keys: Sequence[str]) -> None:
    """
    A bar from 0 for each study, with its interval.

    :param keys: of the studies in ``points`` and ``ranges``
    """
    for place, (study, key) in enumerate(zip(studies, keys, strict=True)):
        low, high = ranges[key].flatten()
        point = float(np.ravel(points[key])[0])
        axes.barh(place, point, height=0.62, color=COLOURS[study])
        axes.plot([low, high], [place, place], color="black", linewidth=1.4, marker="|", markersize=9, path_effects=ON_A_BAR)
    axes.set_yticks(range(len(studies)), [NAMES[study] for study in studies])
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def panels(n_bars: Sequence[int]) -> tuple[Figure, Sequence[Axes]]:
    """One above the other, with room for so many bars each."""
    figure = Figure(figsize=(colours.WIDTH, 1.6 + 0.36 * sum(n_bars)), layout="constrained")
    return figure, figure.subplots(len(n_bars), 1, sharex=True, height_ratios=[0.8 + n for n in n_bars])


def draw_interquartile_means() -> Figure:
    """Of the last policies, a panel for each set of tasks."""
    figure, all_axes = panels([len(members(peer)) for peer in PEERS])
    for axes, peer in zip(all_axes, PEERS, strict=True):
        studies = members(peer)
        points, ranges = intervals(
            {study: scores(study, peer)[:, :, -1] for study in studies}, lambda x: np.array([metrics.aggregate_iqm(x)])
        )
        draw_bars(axes, studies, points, ranges, studies)
        axes.axvline(1, color="black", linestyle=":", linewidth=1.2)
        axes.set_title(tasks_in_words(peer), loc="left", fontsize="medium")
        axes.tick_params(labelbottom=True)
    all_axes[-1].set(
        xlabel="return of the last policy, in units of the best published one (dotted)\n"
        "bar: mean over the middle half of the runs; line: 95% interval",
        xlim=(0, None),
    )
    return figure


def draw_improvements() -> Figure:
    """How likely a run of ours ends above one of a peer's, on a task drawn at random, a panel for each peer."""
    pairs = {f"{ours},{peer}": (scores(ours, peer)[:, :, -1], scores(peer, peer)[:, :, -1]) for peer in PEERS for ours in OURS}
    points, ranges = intervals(pairs, metrics.probability_of_improvement)
    figure, all_axes = panels([len(OURS)] * len(PEERS))
    for axes, peer in zip(all_axes, PEERS, strict=True):
        draw_bars(axes, OURS, points, ranges, [f"{ours},{peer}" for ours in OURS])
        axes.axvline(0.5, color="black", linestyle=":", linewidth=1.2)
        n_tasks = len(STUDIES[peer].envs)
        axes.set_title(f"against {NAMES[peer]}, {n_tasks} tasks", loc="left", fontsize="medium")
        axes.tick_params(labelbottom=True)
    all_axes[-1].set(
        xlabel="how likely a run of ours ends above one of theirs on the same task\ndotted: no difference; line: 95% interval",
        xlim=(0, 1.01),
    )
    all_axes[-1].xaxis.set_major_formatter(PercentFormatter(1))
    return figure


def draw_curves() -> Figure:
    """Interquartile mean by environment steps, a panel for each set of tasks."""
    figure = Figure(figsize=(colours.WIDTH, 4.6), layout="constrained")
    all_axes = figure.subplots(1, len(PEERS), sharey=True)
    for axes, peer in zip(all_axes, PEERS, strict=True):
        of = {study: scores(study, peer)[:, :, :-1] for study in members(peer)}
        points, ranges = intervals(
            of, lambda x: np.array([metrics.aggregate_iqm(x[:, :, index]) for index in range(x.shape[-1])])
        )
        millions = np.linspace(0, 1, 21)[1:]
        for study in of:
            axes.plot(millions, points[study], color=COLOURS[study], linewidth=2, label=NAMES[study])
            axes.fill_between(millions, *ranges[study], color=COLOURS[study], alpha=0.2, linewidth=0)
        axes.axhline(1, color="black", linestyle=":", linewidth=1.2)
        axes.set_title(tasks_in_words(peer), fontsize="medium")
        axes.set(xlabel="environment steps, millions", xlim=(0, 1), ylim=(0, None))
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("return, in units of the best published one (dotted)\nmean over the middle half of the runs")
    figure.legend(*all_axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_wall_clock(axes: Axes, env_id: str) -> None:
    """Every seed's curve over its time on one core, their mean, and the published figure of PPO."""
    drawn: set[Path] = set()
    for study, name in NAMES.items():
        if env_id not in STUDIES[study].envs:
            continue
        of_seeds = curves(study, env_id)
        files = {file_of((study, env_id, seed)) for seed in of_seeds}
        if files <= drawn:
            continue
        drawn |= files
        # The last evaluation on the way is a rollout before the one at the end, of a quarter of the episodes.
        shown = [[*rows[:-2], rows[-1]] for rows in of_seeds.values()]
        minutes = np.array([[row["seconds"] / 60 for row in rows] for rows in shown])
        returns = np.array([[np.mean(row["returns"]) for row in rows] for rows in shown])
        axes.plot(minutes.T, returns.T, color=COLOURS[study], alpha=0.35, linewidth=1)
        label = name if f"seeds {STUDIES[study].seeds[0]} to" in name else f"{name}, {len(shown)} seeds"
        axes.plot(minutes.mean(axis=0), returns.mean(axis=0), color=COLOURS[study], linewidth=2.5, label=label)
    figure, _ = published(env_id, "PPO") or (np.nan, 0)
    axes.axhline(figure, color="black", linestyle=":", label=f"published return of PPO, {figure:.0f}")
    axes.set(
        xlabel="time on one core", ylabel="return of an episode", xscale="log",
        title=f"{env_id}, 1,000,000 steps: thick, the mean; thin, each seed",
    )  # fmt: skip
    axes.set_xticks([1 / 12, 1 / 4, 1, 4, 15, 30], ["5 s", "15 s", "1 min", "4 min", "15 min", "30 min"])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)


def members(peer: str) -> list[str]:
    """Studies that have all their seeds of every task of a peer's."""
    return [
        study
        for study in NAMES
        if all(len(evaluations(study, env_id)) == len(STUDIES[study].seeds) for env_id in STUDIES[peer].envs)
    ]


def tasks_in_words(peer: str) -> str:
    return textwrap.fill(", ".join(env_id.split("-")[0] for env_id in STUDIES[peer].envs), 40)


def main() -> None:
    incomplete = [peer for peer in PEERS if peer not in members(peer)]
    if incomplete:
        raise SystemExit(f"python benchmarks/returns.py --studies {' '.join(incomplete)} comes first")
    wall_clock = Figure(figsize=(colours.WIDTH, 5), layout="constrained")
    axes = wall_clock.subplots()
    draw_wall_clock(axes, "HalfCheetah-v4")
    wall_clock.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    for name, figure in {
        "interquartile_means": draw_interquartile_means(),
        "improvements": draw_improvements(),
        "curves": draw_curves(),
        "wall_clock": wall_clock,
    }.items():
        figure.savefig(PICTURES / f"returns_{name}.png", dpi=colours.DPI)


if __name__ == "__main__":
    main()
