"""
How well do agents act after as many steps as RL Zoo's TRPO is given?

Trains through RL Zoo: our entries, our entry for any environment, and the peers with RL Zoo's entries. On the way it
evaluates 20 times (5 deterministic episodes each), at the end once more (20 episodes of the last policy). One CSV file a run,
benchmarks/results/returns/ALGORITHM/ENVIRONMENT-SEED-SETTINGS.csv, so that studies with the same settings share their runs and
those of former settings stay. Runs that have a file are skipped, so it can be stopped and started again.

    python benchmarks/returns.py                                             # what is missing: days on two cores
    python benchmarks/returns.py --studies tuned --envs Hopper-v4 --seeds 0  # some of it, or one run again
    python benchmarks/returns.py --table                                     # only print the tables of what is there
"""

import contextlib
import csv
import hashlib
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import results_file
import rl_zoo3
import sb3_contrib
import stable_baselines3 as sb3
import torch as th
import yaml
from rl_zoo3 import ALGOS
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_trpo_plus import zoo

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "returns"
AGENTS = ROOT / "agents"
# A VecEnv seeds its environments one apart, so runs must be further apart than that to see other episodes.
EVALUATION_SEEDS = range(1_000_000, 2_000_000, 100)
ZOO_FILES = Path(rl_zoo3.__file__).parent / "hyperparams"
# Where RL Zoo's ExperimentManager is imported first, an opt-in comes too early to reach it.
zoo.register()
# RL Zoo's own name for it is ours by now.
ALGOS["sb3_contrib_trpo"] = sb3_contrib.TRPO


@dataclass(frozen=True)
class Task:
    """
    :param steps: environment steps that RL Zoo's TRPO is given
    :param target: mean return to reach
    """

    steps: int
    target: float


@dataclass(frozen=True)
class Study:
    """
    Runs that share their settings.

    :param algo: RL Zoo's name of the algorithm
    :param file: of hyperparameters; None: this package's
    :param entry: of that file; None: the environment's own
    :param envs: what it is run on
    :param seeds: what it is run with
    """

    algo: str = "trpo"
    file: Path | None = None
    entry: str | None = None
    envs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


MUJOCO = {
    "HalfCheetah-v4": Task(1_000_000, 7500),
    "Ant-v4": Task(1_000_000, 5500),
    "Hopper-v4": Task(1_000_000, 3700),
    "Walker2d-v4": Task(1_000_000, 5500),
    "Swimmer-v4": Task(1_000_000, 366),
    "Humanoid-v4": Task(1_000_000, 2000),
    "Reacher-v4": Task(1_000_000, -4.0),
    "InvertedPendulum-v4": Task(1_000_000, 1000),
    "InvertedDoublePendulum-v4": Task(1_000_000, 9300),
}
TASKS = {
    **MUJOCO,
    "CartPole-v1": Task(100_000, 500),
    "Acrobot-v1": Task(100_000, -75),
    "MountainCar-v0": Task(100_000, -104),
    "MountainCarContinuous-v0": Task(50_000, 94),
    "Pendulum-v1": Task(100_000, -150),
    "LunarLander-v3": Task(200_000, 250),
    "LunarLanderContinuous-v3": Task(100_000, 275),
    "BipedalWalker-v3": Task(1_000_000, 300),
    "HalfCheetah-v5": Task(1_000_000, 7500),
    "Ant-v5": Task(1_000_000, 5500),
    "Hopper-v5": Task(1_000_000, 3700),
    "Walker2d-v5": Task(1_000_000, 5500),
}
# Chosen once `default` was, for one look: no setting was tuned on these. The last two need pybullet_envs_gymnasium.
UNSEEN = ("Pusher-v5", "HumanoidStandup-v4", "HopperBulletEnv-v0", "InvertedPendulumSwingupBulletEnv-v0")
STEPS = {env_id: task.steps for env_id, task in TASKS.items()} | dict.fromkeys(UNSEEN, 1_000_000)
STUDIES = {
    "tuned": Study(envs=tuple(TASKS)),
    # Run once, when no entry was to change any more: the first five were seen while entries still did.
    "fresh": Study(envs=tuple(env_id for env_id in TASKS if not env_id.endswith("-v5")), seeds=(5, 6, 7, 8, 9)),
    "default": Study(entry="default", envs=tuple(MUJOCO)),
    "sb3_contrib": Study(
        "sb3_contrib_trpo",
        ZOO_FILES / "trpo.yml",
        envs=("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4", "Ant-v4", "Humanoid-v4", "Swimmer-v4"),
        seeds=(0, 1, 2),
    ),
    "ppo": Study("ppo", ZOO_FILES / "ppo.yml", envs=("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"), seeds=(0, 1, 2)),
    "unseen": Study(entry="default", envs=UNSEEN, seeds=(0, 1, 2)),
    "unseen_sb3_contrib": Study("sb3_contrib_trpo", ZOO_FILES / "trpo.yml", envs=UNSEEN, seeds=(0, 1, 2)),
}
Run = tuple[str, str, int]


@cache
def entries(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text()))


def settings_of(run: Run) -> dict[str, Any]:
    """In RL Zoo's form, before RL Zoo reads it."""
    name, env_id, _ = run
    study = STUDIES[name]
    listed = entries(study.file or zoo.hyperparams_file(study.algo))
    if env_id in UNSEEN:
        # RL Zoo lists not all of them: the algorithm's own arguments stand in.
        listed = {env_id: {"policy": "MlpPolicy"}, **listed}
    return {**listed[study.entry or env_id], "n_timesteps": STEPS[env_id]}


def file_of(run: Run) -> Path:
    """Named by what was run, and not by the study that asked for it."""
    name, env_id, seed = run
    digest = hashlib.sha256(json.dumps(settings_of(run), sort_keys=True).encode()).hexdigest()[:8]
    return RESULTS / STUDIES[name].algo / f"{env_id}-{seed}-{digest}.csv"


class Curve(BaseCallback):
    """
    Evaluates every so many steps, and stops the clock meanwhile.

    :param env: with normalisation like the one in training
    :param every: steps
    """

    def __init__(self, env: VecEnv, every: int) -> None:
        super().__init__()
        self._env, self._every = env, every
        self._start, self._paused = time.perf_counter(), 0.0
        self.rows: list[dict[str, Any]] = []

    def evaluate(self, episodes: int) -> None:
        """Keep deterministic returns as a row."""
        begin = time.perf_counter()
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self._env)
        returns, _ = evaluate_policy(self.model, self._env, episodes, return_episode_rewards=True, warn=False)
        row = {
            "steps": self.model.num_timesteps,
            "seconds": round(begin - self._start - self._paused, 1),
            "returns": returns,
        }
        self.rows.append(row)
        self._paused += time.perf_counter() - begin

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._every * (len(self.rows) + 1):
            self.evaluate(5)
        return True


def learn(
    algo: str, env_id: str, seed: int, settings: dict[str, Any], folder: str, evaluations: int = 20
) -> tuple[ExperimentManager, BaseAlgorithm, Curve]:
    """
    Train an agent through RL Zoo, on one thread, evaluating it on the way and, with 20 episodes, at the end.

    :param settings: an entry of RL Zoo's file, with its ``n_timesteps``
    :param folder: for RL Zoo's files
    :param evaluations: on the way
    """
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        config = Path(folder) / "config.yml"
        config.write_text(yaml.safe_dump({env_id: settings}))
        args = Namespace(algo=algo, env=env_id, seed=seed, env_kwargs=None)
        manager = ExperimentManager(
            args, algo, env_id, folder, eval_freq=-1, seed=seed, verbose=0, device="cpu", config=str(config)
        )
        set_random_seed(seed)
        experiment = manager.setup_experiment()
        assert experiment is not None
        model, _ = experiment
        manager.seed = EVALUATION_SEEDS[seed]
        steps = settings["n_timesteps"]
        curve = Curve(manager.create_envs(5, eval_env=True), steps // evaluations)
        model.learn(steps, [*manager.callbacks, curve])
        curve.evaluate(20)
    return manager, model, curve


def train(run: Run) -> None:
    """Train and evaluate one agent, write its file, and keep it if it is the best tuned one of its task."""
    name, env_id, seed = run
    settings = settings_of(run)
    with tempfile.TemporaryDirectory() as folder:
        manager, model, curve = learn(STUDIES[name].algo, env_id, seed, settings, folder)
        write(run, settings, curve.rows)
        returns = final_returns("tuned", env_id)
        best = max(returns, key=lambda one: returns[one], default=None)
        if seed == best and file_of(("tuned", env_id, seed)) == file_of(run):
            manager.save_trained_model(model)
            keep_agent(Path(manager.save_path), manager.args)


def keep_agent(trained: Path, args: Namespace) -> None:
    """Put RL Zoo's folder of an agent where ``enjoy`` finds it, in the place of the former one."""
    place = AGENTS / args.algo / f"{args.env}_1"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(trained, place, ignore=shutil.ignore_patterns("*.monitor.csv", "command.txt"))


def write(run: Run, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """One row an evaluation under lines that say what was run; the file is there as a whole or not at all."""
    name, env_id, seed = run
    about = {
        "algo": STUDIES[name].algo,
        "env": env_id,
        "seed": seed,
        "settings": json.dumps(settings),
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout,
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "processor": processor(),
        "versions": f"stable-baselines3 {sb3.__version__}, gymnasium {gym.__version__}, mujoco {mujoco.__version__}",
        **results_file.described(),
    }
    file = file_of(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    with unfinished.open("w", newline="") as stream:
        stream.writelines(f"# {key}: {str(value).strip()}\n" for key, value in about.items())
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "returns": " ".join(f"{value:.6g}" for value in row["returns"])} for row in rows)
    unfinished.rename(file)


def processor() -> str:
    """Its maker's name for it, where the system tells."""
    about = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", about.read_text()) if about.is_file() else []
    return f"{names[0]}, {os.cpu_count()} cores" if names else platform.processor()


def read(file: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, ``returns`` as floats."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return [
        {"steps": int(row["steps"]), "seconds": float(row["seconds"]), "returns": [float(x) for x in row["returns"].split()]}
        for row in csv.DictReader(lines)
    ]


def head(file: Path) -> dict[str, str]:
    """What a run's file says about it."""
    lines = [line[2:] for line in file.read_text().splitlines() if line.startswith("# ")]
    return dict(line.split(": ", 1) for line in lines)


def mean_at_the_end(rows: list[dict[str, Any]]) -> float:
    return float(np.mean(rows[-1]["returns"]))


def curves(name: str, env_id: str) -> dict[int, list[dict[str, Any]]]:
    """The evaluations of a study's runs by their seeds, of those that have a file."""
    files = {seed: file_of((name, env_id, seed)) for seed in STUDIES[name].seeds}
    return {seed: read(file) for seed, file in files.items() if file.is_file()}


def final_returns(name: str, env_id: str) -> dict[int, float]:
    """Mean return at the end of each run by its seed."""
    return {seed: mean_at_the_end(rows) for seed, rows in curves(name, env_id).items()}


def published(env_id: str, algo: str) -> tuple[float, int] | None:
    """The best of the published mean returns, and after how many steps; of any version of the environment."""

    def name(id: str) -> str:
        return re.sub(r"-v\d$", "", id)

    with (ROOT / "published.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if (name(row["env"]), row["algo"]) == (name(env_id), algo)]
    return max(((float(row["mean_return"]), int(row["env_steps"])) for row in rows), default=None)


def best_published(env_id: str) -> float:
    """By TRPO or PPO, after any number of steps."""
    return max(figure for algo in ("TRPO", "PPO") for figure, _ in [published(env_id, algo) or (-math.inf, 0)])


def held_from(name: str, env_id: str, level: float) -> tuple[int, float] | None:
    """Steps, and seconds, from which on the mean over the seeds that have a file is never below a level."""
    held = None
    for rows in zip(*curves(name, env_id).values(), strict=True):
        if np.mean([np.mean(row["returns"]) for row in rows]) < level:
            held = None
        elif held is None:
            held = rows[0]["steps"], float(np.mean([row["seconds"] for row in rows]))
    return held


def summary(name: str, env_id: str) -> str:
    """Mean and standard deviation over the seeds."""
    values = list(final_returns(name, env_id).values()) if env_id in STUDIES[name].envs else []
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.4g}" if len(values) > 1 else ""
    missing = len(STUDIES[name].seeds) - len(values)
    return f"{statistics.mean(values):.4g}{spread}" + (f" ({missing} seeds missing)" if missing else "")


def print_table() -> None:
    """One Markdown row an environment that has a run of ours, beside peers measured here and the best published figures."""
    print(
        "| environment | steps | target | ours, tuned | tuned, seeds 5 to 9 | ours, `default` | sb3-contrib's TRPO "
        "| SB3's PPO | published TRPO | published PPO | tuned / seeds 5 to 9 against the best published "
        "| target held from step, tuned / seeds 5 to 9 |"
    )
    print("|---" * 12 + "|")
    for env_id, task in TASKS.items():
        measured = [summary(name, env_id) for name in ("tuned", "fresh", "default", "sb3_contrib", "ppo")]
        if not measured[0]:
            continue
        quoted = []
        for algo in ("TRPO", "PPO"):
            figure, steps = published(env_id, algo) or (None, task.steps)
            after = "" if steps == task.steps else f" ({steps:,} steps)"
            quoted.append("" if figure is None else f"{figure:.4g}{after}")
        best = best_published(env_id)
        ours = [name for name in ("tuned", "fresh") if final_returns(name, env_id)]
        means = [statistics.mean(final_returns(name, env_id).values()) for name in ours]
        held = [held_from(name, env_id, task.target) for name in ours]
        stands = " / ".join(f"{(mean - best) / abs(best):+.0%}" for mean in means)
        steps_held = " / ".join(f"{one[0]:,}" if one else "never" for one in held)
        print("|", " | ".join([env_id, f"{task.steps:,}", f"{task.target:g}", *measured, *quoted, stands, steps_held]), "|")


def print_times() -> None:
    """One Markdown row a library: how long HalfCheetah takes to PPO's published return."""
    env_id = "HalfCheetah-v4"
    level, _ = published(env_id, "PPO") or (math.inf, 0)
    print(f"| {env_id} | seeds | ends above {level:.0f} | mean over the seeds above it from step | after | whole run |")
    print("|---" * 6 + "|")
    for name, words in {
        "tuned": "ours",
        "fresh": "ours, seeds 5 to 9",
        "sb3_contrib": "sb3-contrib's TRPO",
        "ppo": "SB3's PPO",
    }.items():
        returns = final_returns(name, env_id)
        seconds = [rows[-1]["seconds"] for rows in curves(name, env_id).values()]
        above = sum(value >= level for value in returns.values())
        held = held_from(name, env_id, level)
        reached = [f"{held[0]:,}", minutes(held[1])] if held else ["", ""]
        print("|", " | ".join([words, str(len(returns)), str(above), *reached, minutes(statistics.mean(seconds))]), "|")


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def print_unseen() -> None:
    """One Markdown row an environment that no setting was chosen on; nothing before there is one."""
    rows = [[env_id, *(summary(name, env_id) for name in ("unseen", "unseen_sb3_contrib"))] for env_id in UNSEEN]
    measured = [row for row in rows if any(row[1:])]
    if measured:
        print("| unseen environment | ours, `default` | sb3-contrib's TRPO |")
        print("|---|---|---|")
    for row in measured:
        print("|", " | ".join(row), "|")


def by_seed(means: dict[int, float]) -> str:
    return ", ".join(f"{means[seed]:.4g}" for seed in sorted(means))


def print_seeds() -> None:
    """One Markdown row a study and environment, with the return of each seed."""
    print("| study | environment | mean return of each seed |")
    print("|---|---|---|")
    for name, study in STUDIES.items():
        for env_id in study.envs:
            means = final_returns(name, env_id)
            if means:
                print(f"| {name} | {env_id} | {by_seed(means)} |")


def print_former() -> None:
    """One Markdown row for settings that no study has any more, with the return of each seed."""
    present = {
        file_of((name, env_id, seed)) for name, study in STUDIES.items() for env_id in study.envs for seed in study.seeds
    }
    former: dict[tuple[str, str], dict[int, float]] = {}
    for file in sorted(RESULTS.glob("trpo/*.csv")):
        if file not in present:
            about = head(file)
            former.setdefault((about["env"], about["settings"]), {})[int(about["seed"])] = mean_at_the_end(read(file))
    print("| environment | where it differs from `default` | mean return of each seed |")
    print("|---|---|---|")
    for (env_id, settings), means in former.items():
        ours, theirs = settings_of(("default", env_id, 0)), json.loads(settings)
        other = [f"`{key}: {theirs[key]}`" for key in theirs if theirs[key] != ours.get(key)]
        other += [f"no `{key}`" for key in ours if key not in theirs]
        print(f"| {env_id} |", ", ".join(other), f"| {by_seed(means)} |")


def print_short() -> None:
    """One short Markdown row a task with fresh seeds, with a star where the published agent had another number of steps."""
    print("| environment | ours | sb3-contrib | best published |")
    print("|---" * 4 + "|")
    for env_id in STUDIES["fresh"].envs:
        figure, has_our_steps = max(
            (figure, steps == TASKS[env_id].steps)
            for figure, steps in filter(None, (published(env_id, algo) for algo in ("TRPO", "PPO")))
        )
        best = short([figure]) + "*" * (not has_our_steps)
        contrib = final_returns("sb3_contrib", env_id) if env_id in STUDIES["sb3_contrib"].envs else {}
        measured = [short(list(returns.values())) for returns in (final_returns("fresh", env_id), contrib)]
        print("|", " | ".join([env_id, *measured, best]), "|")


def short(values: Sequence[float]) -> str:
    """Their mean, and the standard deviation of more than one, with a decimal where that says something; empty for none."""
    if not values:
        return ""
    mean = statistics.mean(values)
    decimals = 0 if abs(mean) >= 100 else 1
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{mean:.{decimals}f}{spread}"


def print_agents() -> None:
    """One Markdown row an agent that is kept: its twenty episodes, and the mean over the seeds that it is the best of."""
    print("| agent | seed | steps | its return | mean over seeds 0 to 4 |")
    print("|---" * 5 + "|")
    for env_id, task in TASKS.items():
        about = AGENTS / "trpo" / f"{env_id}_1" / env_id / "args.yml"
        if about.is_file():
            # As RL Zoo reads it, which keeps an OrderedDict there.
            seed = yaml.load(about.read_text(), yaml.UnsafeLoader)["seed"]
            episodes = curves("tuned", env_id)[seed][-1]["returns"]
            means = list(final_returns("tuned", env_id).values())
            print("|", " | ".join([env_id, str(seed), f"{task.steps:,}", short(episodes), short(means)]), "|")


def main() -> None:
    parser = results_file.parser(__doc__)
    parser.add_argument("--studies", nargs="+", default=list(STUDIES), choices=list(STUDIES), metavar="STUDY", help="which")
    parser.add_argument("--envs", nargs="+", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    args = parser.parse_args()
    if not args.table:
        runs = [
            (name, env_id, seed)
            for name in args.studies
            for env_id in STUDIES[name].envs
            for seed in STUDIES[name].seeds
            if env_id in (args.envs or STUDIES[name].envs) and seed in (args.seeds or STUDIES[name].seeds)
        ]
        # The first seed of everything before the second of anything, since this is stopped often.
        runs.sort(key=lambda run: run[2])
        missing = {file_of(run): run for run in runs if not file_of(run).is_file()}
        for _ in results_file.in_processes(train, list(missing.values()), args.jobs):
            pass
    for table in (print_table, print_times, print_unseen, print_seeds, print_former, print_short, print_agents):
        table()
        print()


if __name__ == "__main__":
    main()
