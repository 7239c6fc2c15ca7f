"""
How much longer than simulating does learning take? Ours beside sb3-contrib's, with the same settings, seeds and machine.

For each workload one process a library is started; they take turns, so that both meet the same noise of the machine, and the
medians of the repeats are compared, of learn() as a whole and of each of its parts. Settings are RL Zoo's. "cheaper" is ours
with cg_residual_tol=0.02, "cheapest" with cg_residual_tol=0.1 and fisher_sub_sampling_factor=5; what their steps are worth,
cheaper_step.py measures.

    python benchmarks/speed.py            # measure (a quarter of an hour), write results/speed.csv and the picture, print
    python benchmarks/speed.py --table    # only print what results/speed.csv has
    python benchmarks/speed.py --draw     # only draw it
    python benchmarks/speed.py --only CartPole-v1 --threads 1 --no-save    # one workload, for a look
    python benchmarks/speed.py --against REVISION --threads 1    # learn() beside that of a revision of this repository
"""

import argparse
import csv
import io
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import colours

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "speed.csv"
AGAINST = ROOT / "results" / "speed_against.csv"
PICTURE = ROOT.parent / "docs" / "images" / "speed.png"
REPEATS = 5
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sb3_contrib": ("sb3_contrib", {}),
    "ours": ("sb3_trpo_plus", {}),
    "ours, cheaper": ("sb3_trpo_plus", {"cg_residual_tol": 0.02}),
    "ours, cheapest": ("sb3_trpo_plus", {"cg_residual_tol": 0.1, "fisher_sub_sampling_factor": 5}),
}
MUJOCO = {
    "n_steps": 1024, "batch_size": 128, "gamma": 0.99, "gae_lambda": 0.95, "cg_max_steps": 25, "cg_damping": 0.1,
    "n_critic_updates": 20, "learning_rate": 1e-3,
}  # fmt: skip
CARTPOLE = {
    "n_steps": 512, "batch_size": 512, "gamma": 0.99, "gae_lambda": 0.98, "cg_damping": 1e-3, "n_critic_updates": 20,
    "learning_rate": 1e-3,
}  # fmt: skip
WIDE = {"net_arch": [256, 256]}
PARTS = ("environment", "rest of collection", "policy update", "critic fit", "rest")


class Workload(NamedTuple):
    """
    :param env: Gymnasium id, with " in parts" for its observation as a Dict of two vectors; or "images" for SB3's fake
        84 x 84 x 4 frames
    :param settings: of the algorithm
    :param measured: "learn", "policy update" or "critic fit"
    :param variants: which of VARIANTS
    :param rollouts: of one measurement of learn()
    :param target: how many times faster than sb3-contrib ours should be
    :param environment_target: the same for learn() over the bare environment, by number of threads
    """

    env: str
    settings: dict[str, Any]
    measured: str
    variants: tuple[str, ...]
    rollouts: int = 0
    target: str = ""
    environment_target: tuple[str, str] = ("", "")


CHEETAH = {**MUJOCO, "target_kl": 0.04}
WITH_CHEAPER, ALL, PLAIN = tuple(VARIANTS)[:3], tuple(VARIANTS), tuple(VARIANTS)[:2]
CHEETAH_UPDATE = {**CHEETAH, "n_critic_updates": 0}
UPDATE_TARGET = "4 (with a cheaper step: 10)"
WORKLOADS = {
    "CartPole-v1": Workload("CartPole-v1", CARTPOLE, "learn", WITH_CHEAPER, 6, "7", ("2.2", "2.2")),
    "HalfCheetah-v4 64x64": Workload("HalfCheetah-v4", CHEETAH, "learn", WITH_CHEAPER, 2, "4", ("1.3", "1.3")),
    "HalfCheetah-v4 256x256": Workload(
        "HalfCheetah-v4", {**CHEETAH, "policy_kwargs": WIDE}, "learn", WITH_CHEAPER, 2, "5 (two threads: 7)", ("3.3", "2.2")
    ),
    "HalfCheetah-v4 64x64, Dict": Workload("HalfCheetah-v4 in parts", CHEETAH, "learn", WITH_CHEAPER, 2),
    "Humanoid-v4 64x64": Workload("Humanoid-v4", MUJOCO, "learn", WITH_CHEAPER, 1, "2", ("1.15", "1.15")),
    "policy update, 2048 x 17 -> 64-64 -> 6": Workload(
        "HalfCheetah-v4", CHEETAH_UPDATE, "policy update", ALL, target=UPDATE_TARGET
    ),
    "policy update, 2048 x 17 -> 256-256 -> 6": Workload(
        "HalfCheetah-v4", {**CHEETAH_UPDATE, "policy_kwargs": WIDE}, "policy update", ALL, target=UPDATE_TARGET
    ),
    "critic fit, 320 minibatches of 128": Workload("HalfCheetah-v4", CHEETAH, "critic fit", PLAIN, target="4"),
    # Two iterations: each takes sb3-contrib five seconds.
    "policy update, CnnPolicy, 1024 x 84x84x4": Workload(
        "images", {"n_steps": 512, "n_critic_updates": 0, "cg_max_steps": 2}, "policy update", PLAIN, target="3"
    ),
}


def make_env(name: str, seed: int) -> Any:
    """Two environments in one process, MuJoCo's normalised, as in RL Zoo."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.envs import FakeImageEnv
    from stable_baselines3.common.vec_env import VecNormalize

    if name == "images":
        return make_vec_env(lambda: FakeImageEnv(6, 84, 84, 4, discrete=True), 2, seed=seed)
    gym_id, _, in_parts = name.partition(" ")
    env = make_vec_env(gym_id, 2, seed=seed, wrapper_class=positions_and_velocities if in_parts else None)
    return VecNormalize(env) if gym_id.endswith("-v4") else env


def positions_and_velocities(env: Any) -> Any:
    """HalfCheetah's observation as a Dict of its two parts."""
    import numpy as np
    from gymnasium import spaces
    from gymnasium.wrappers import TransformObservation

    parts = {"positions": 8, "velocities": 9}
    space = spaces.Dict({name: spaces.Box(-np.inf, np.inf, (n,), np.float64) for name, n in parts.items()})
    return TransformObservation(env, lambda whole: {"positions": whole[:8], "velocities": whole[8:]}, space)


class Subject:
    """One library's model on one workload, in a process of its own."""

    def __init__(self, workload: Workload, library: str, options: dict[str, Any]):
        self.workload = workload
        policies = {"images": "CnnPolicy", "HalfCheetah-v4 in parts": "MultiInputPolicy"}
        policy = policies.get(workload.env, "MlpPolicy")
        settings = {**workload.settings, **options}
        self.model = import_module(library).TRPO(policy, make_env(workload.env, 0), seed=0, device="cpu", **settings)
        rollout = self.model.n_steps * self.model.n_envs
        self.steps = workload.rollouts * rollout
        if workload.measured == "learn":
            self.model.learn(rollout)
        else:
            _, callback = self.model._setup_learn(rollout)
            self.model.collect_rollouts(self.model.env, callback, self.model.rollout_buffer, self.model.n_steps)
            self.start = self.model.get_parameters()
            self.train()

    def measure(self) -> tuple[float, dict[str, float]]:
        """Seconds of one measurement, and of learn()'s PARTS."""
        if self.workload.measured != "learn":
            return self.train(), {}
        self.actions: list[Any] = []
        self.model.env.seed(self.steps)
        self.model._last_obs = None  # learn() then resets the environments, with this seed
        with self.parts() as seconds:
            self.model.learn(self.steps, reset_num_timesteps=False)
        return sum(seconds.values()), seconds

    def bare(self) -> float:
        """Seconds of the last measurement's steps again, by the environments alone: same seed, same actions, same episodes."""
        env = make_env(self.workload.env, 1)
        env.seed(self.steps)
        env.reset()
        start = time.perf_counter()
        for actions in self.actions:
            env.step(actions)
        return time.perf_counter() - start

    def train(self) -> float:
        """Seconds of one update, always from the same parameters on the same rollout."""
        self.model.set_parameters(self.start)
        with self.parts() as seconds:
            self.model.train()
        return seconds[self.workload.measured]

    @contextmanager
    def parts(self) -> Iterator[dict[str, float]]:
        """Split the time spent in here into PARTS, by clocks around the model's own methods, and note the actions."""
        seconds = dict.fromkeys(PARTS, 0.0)
        model, buffer, clock = self.model, self.model.rollout_buffer, time.perf_counter
        critic_start: list[float] = []

        def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                start = clock()
                result = function(*args, **kwargs)
                seconds[part] += clock() - start
                return result

            return call

        def train() -> None:
            critic_start.clear()
            before, start = seconds["critic fit"], clock()
            type(model).train(model)
            end = clock()
            if critic_start:
                seconds["critic fit"] += end - critic_start[0]
            seconds["policy update"] += end - start - (seconds["critic fit"] - before)

        get, step = buffer.get, timed("environment", model.env.step)

        def recording_step(actions: Any) -> Any:
            self.actions.append(actions)
            return step(actions)

        def watched_get(batch_size: int | None = None) -> Any:
            # sb3-contrib's critic has no method of its own: its fit is what follows the first minibatch.
            if batch_size is not None and not critic_start:
                critic_start.append(clock())
            return get(batch_size)

        collect = type(model).collect_rollouts.__get__(model)
        model.env.step, model.train = recording_step, train
        model.collect_rollouts = timed("rest of collection", collect)
        if hasattr(model, "_fit_critic"):
            model._fit_critic = timed("critic fit", type(model)._fit_critic.__get__(model))
        else:
            buffer.get = watched_get
        start = clock()
        try:
            yield seconds
        finally:
            total = clock() - start
            for owner, name in (
                (model.env, "step"), (buffer, "get"), (model, "train"), (model, "collect_rollouts"), (model, "_fit_critic"),
            ):  # fmt: skip
                owner.__dict__.pop(name, None)
            seconds["rest of collection"] -= seconds["environment"]
            seconds["rest"] = total - sum(seconds.values())


def serve(connection: Connection, name: str, variant: str, threads: int, package: str | None) -> None:
    """
    The process of one library on one workload: does what it is told, and answers with the result.

    :param package: folder to import this library from; None: as it is installed
    """
    warnings.simplefilter("ignore")
    if package is not None:
        sys.path.insert(0, package)
    import torch as th

    th.set_num_threads(threads)
    subject = Subject(WORKLOADS[name], *VARIANTS[variant])
    connection.send("ready")
    while (order := connection.recv()) != "stop":
        connection.send(getattr(subject, order)())
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    connection.send((kilobytes / 1024, subject.model.logger.name_to_value.get("train/cg_iterations")))


def measure(name: str, threads: int, repeats: int, variants: dict[str, tuple[str, str | None]]) -> list[dict[str, Any]]:
    """
    One row a variant: medians over the repeats, in which the variants alternate.

    :param variants: names in VARIANTS, and folders to import from, by what they are called in the results
    """
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    for variant, (of_table, package) in variants.items():
        connections[variant], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, name, of_table, threads, package), daemon=True).start()
        theirs.close()
    for connection in connections.values():
        assert connection.recv() == "ready"

    def ask(variant: str, order: str) -> Any:
        connections[variant].send(order)
        return connections[variant].recv()

    is_learn = WORKLOADS[name].measured == "learn"
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    parts: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    bare = []
    for _ in range(repeats):
        for variant in variants:
            total, of_run = ask(variant, "measure")
            seconds[variant].append(total)
            parts[variant].append(of_run)
        if is_learn:
            bare.append(ask(list(variants)[1], "bare"))
    rows = []
    for variant in variants:
        medians = {part: statistics.median(of_run[part] for of_run in parts[variant]) for part in PARTS if is_learn}
        megabytes, iterations = ask(variant, "stop")
        rows.append(
            {
                "workload": name,
                "threads": threads,
                "variant": variant,
                "seconds": round(statistics.median(seconds[variant]), 5),
                "lowest": round(min(seconds[variant]), 5),
                "highest": round(max(seconds[variant]), 5),
                "bare_seconds": round(statistics.median(bare), 5) if bare else "",
                "peak_megabytes": round(megabytes),
                "cg_iterations": iterations if iterations is not None else "",
                "parts": json.dumps({part: round(value, 4) for part, value in medians.items()}) if medians else "",
            }
        )
    return rows


def machine() -> dict[str, str]:
    """Versions, and the rate of a large matrix product, by which the arithmetic's floors can be told."""
    import sb3_contrib
    import stable_baselines3
    import torch as th

    import sb3_trpo_plus

    th.set_num_threads(1)
    matrix = th.randn(1024, 1024)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    model = next((line.split(": ")[1] for line in _cpu_info() if line.startswith("model name")), platform.machine())
    return {
        "sb3_trpo_plus": sb3_trpo_plus.__version__,
        "sb3_contrib": sb3_contrib.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "torch": th.__version__,
        "python": platform.python_version(),
        "machine": f"{model.strip()}, {os.cpu_count()} cores",
        "gflops_a_core": f"{2 * 1024**3 / statistics.median(times) / 1e9:.0f}",
    }


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def read() -> list[dict[str, str]]:
    with RESULTS.open() as file:
        return list(csv.DictReader(file))


def print_tables(rows: list[dict[str, Any]]) -> None:
    """A Markdown table for each number of threads."""
    for threads in sorted({int(row["threads"]) for row in rows}):
        print(f"\n{threads} thread{'s' * (threads > 1)}:\n")
        print(
            "| workload | sb3-contrib | ours | ours is faster by | cheaper | cheapest | target "
            "| learn() / bare env.step: ours | cheaper | target | peak memory, ours / sb3-contrib's |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        for name, workload in WORKLOADS.items():
            found = {row["variant"]: row for row in rows if row["workload"] == name and int(row["threads"]) == threads}
            if not found:
                continue
            seconds = {variant: float(row["seconds"]) for variant, row in found.items()}
            theirs, ours, *_ = seconds.values()
            memory = [float(row["peak_megabytes"]) for row in found.values()]
            steps = workload.rollouts * workload.settings["n_steps"] * 2
            shown = [f"{steps / s:,.0f} steps/s" if steps else f"{1e3 * s:,.1f} ms" for s in (theirs, ours)]
            factors = [f"{theirs / seconds[variant]:.1f}" if variant in seconds else "" for variant in ALL[1:]]
            bare = found["ours"]["bare_seconds"]
            over_bare = [f"{seconds[variant] / float(bare):.2f}" if bare else "" for variant in WITH_CHEAPER[1:]]
            cells = [
                name, *shown, *factors, workload.target, *over_bare, workload.environment_target[threads > 1],
                f"{memory[1] / memory[0]:.2f}",
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |")


DRAWN_PARTS = {
    "environment": ("the environment's step", colours.ENVIRONMENT),
    "rest of collection": ("rest of the collection", colours.COLLECTION),
    "policy update": ("policy update", colours.POLICY_UPDATE),
    "critic fit": ("critic's fit", colours.CRITIC_FIT),
}
DRAWN_VARIANTS = {
    "sb3_contrib": ("sb3-contrib", colours.SB3_CONTRIB),
    "ours": ("ours", colours.OURS),
    "ours, cheaper": ("ours, cheaper step", colours.OURS),
}


def draw(rows: list[dict[str, Any]]) -> None:
    """Where the time of learn() goes: bars as long as the medians, divided in proportion to the parts."""
    # Not at the top: the processes that are measured import this module, and their memory is compared.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(colours.WIDTH, 7), layout="constrained")
    axes = figure.subplots()
    places: list[float] = []
    for name, workload in WORKLOADS.items():
        found = {row["variant"]: row for row in rows if row["workload"] == name and int(row["threads"]) == 1}
        if workload.measured != "learn" or not found:
            continue
        top = places[-1] + 1.2 if places else 0.0
        microseconds = 1e6 / (workload.rollouts * workload.settings["n_steps"] * 2)
        medians = {variant: float(found[variant]["seconds"]) * microseconds for variant in DRAWN_VARIANTS}
        axes.text(0, top + 0.25, name, fontweight="bold", verticalalignment="center")
        for place, (variant, median) in enumerate(medians.items(), 1):
            parts = json.loads(found[variant]["parts"])
            # Logging, a thousandth.
            parts["rest of collection"] += parts.pop("rest")
            left = 0.0
            for part, (of_part, colour) in DRAWN_PARTS.items():
                width = parts[part] / sum(parts.values()) * median
                axes.barh(top + place, width, 0.8, left, color=colour, label=None if places else of_part)
                left += width
            factor = medians["sb3_contrib"] / median
            gain = "" if variant == "sb3_contrib" else f",  {factor:.1f}x as fast"
            axes.text(median, top + place, f"  {median:.0f} µs{gain}", verticalalignment="center")
            places.append(top + place)
        bare = float(found["ours"]["bare_seconds"]) * microseconds
        label = None if top else "the environment alone, no learning"
        axes.plot([bare, bare], [top + 0.55, top + 3.5], color="black", linestyle=":", label=label)
    axes.set_yticks(places, [label for label, _ in DRAWN_VARIANTS.values()] * (len(places) // len(DRAWN_VARIANTS)))
    for tick, (_, colour) in zip(axes.get_yticklabels(), list(DRAWN_VARIANTS.values()) * len(places), strict=False):
        tick.set_color(colour)
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.set_xlabel("microseconds an environment step, 1 thread: shorter is better")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=colours.DPI)


def against(revision: str, names: list[str], threads: int, repeats: int) -> None:
    """learn() beside what it was at a revision of this repository, in one run."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", "--format=tar", revision, "sb3_trpo_plus"], cwd=ROOT.parent, check=True, capture_output=True
        )
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        # One that is installed in editable mode is found through a hook that comes before the path: both go by the path.
        variants: dict[str, tuple[str, str | None]] = {revision: ("ours", folder), "now": ("ours", str(ROOT.parent))}
        rows = [row for name in names for row in measure(name, threads, repeats, variants)]
    described = machine()
    with AGAINST.open("w", newline="") as file:
        writer = csv.DictWriter(file, {**rows[0], **described}, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **described} for row in rows)
    print(f"| workload | {revision} | now | slower by |\n|---|---|---|---|")
    for name in names:
        before, now = (float(row["seconds"]) for row in rows if row["workload"] == name)
        print(f"| {name} | {before:.3f} s | {now:.3f} s | {now / before - 1:+.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the tables of what was measured")
    parser.add_argument("--draw", action="store_true", help="only draw what was measured")
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--threads", nargs="+", type=int, choices=[1, 2], default=[1, 2])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--against", metavar="REVISION", help="measure learn() beside that of a revision of this repository")
    parser.add_argument("--no-save", action="store_true", help="print, but leave the results as they are")
    args = parser.parse_args()
    if args.table:
        print_tables(read())
        return
    if args.draw:
        draw(read())
        return
    if args.against:
        names = [name for name in args.only if WORKLOADS[name].measured == "learn"]
        against(args.against, names, args.threads[0], args.repeats)
        return
    rows: list[dict[str, Any]] = []
    for threads in args.threads:
        for name in args.only:
            rows += measure(name, threads, args.repeats, {variant: (variant, None) for variant in WORKLOADS[name].variants})
            print(
                f"{name}, {threads} thread(s): "
                + ", ".join(f"{row['variant']} {row['seconds']} s" for row in rows[-len(WORKLOADS[name].variants) :])
            )
    print_tables(rows)
    if args.no_save:
        print(json.dumps({row["variant"] + " " + row["workload"]: row["parts"] for row in rows if row["parts"]}, indent=1))
        return
    described = machine()
    rows = [{**row, **described} for row in rows]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows)


if __name__ == "__main__":
    main()
