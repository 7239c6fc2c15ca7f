"""
How many steps a second does learn() make? This library beside its peers, on one core and two, with few environments and many.

Each library runs in a process of its own, peers whose packages are not here in an environment of their own, which is made at
the first use (benchmarks/.peers, a minute). The processes of a workload take turns, so that all meet the same noise of the
machine; of the repeats the median counts, of learn() after a learn() that warmed up. A process has the cores that its row
names, and torch one thread: with 64 units a layer a second thread makes ours and sb3-contrib slower (results/speed.csv).

All trust-region rows of a workload have the same settings, and so have all PPO rows, Stable-Baselines3's own, as far as a
library can be told; the tables say what differs. Networks are 64 x 64 with tanh, and MuJoCo's observations normalised by what
the library has for it. CleanRL is no package: what PyPI has of that name is of 2021 and needs Gym and PyBullet. Spinning Up
can't be installed beside a torch of these years.

    python benchmarks/throughput.py            # measure what this revision has no rows for (20 minutes), draw, print
    python benchmarks/throughput.py --table    # only print the tables of what was measured
    python benchmarks/throughput.py --draw     # only draw it
    python benchmarks/throughput.py --only HalfCheetah growth --again    # workloads that begin so, whatever there is
    python benchmarks/throughput.py --only CartPole --repeats 1 --no-save    # for a look
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import colours
import results_file
import speed
from own_environment import python_with

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "throughput.csv"
PICTURE = ROOT.parent / "docs" / "images" / "throughput.png"
GROWTH_PICTURE = ROOT.parent / "docs" / "images" / "throughput_growth.png"
OURS, CONTRIB = "sb3_trpo_plus.TRPO", "sb3_contrib.TRPO"
PPO = {"n_epochs": 10, "batch_size": 64, "learning_rate": 3e-4, "gamma": 0.99, "gae_lambda": 0.95}


def settings(n_envs: int) -> dict[str, Any]:
    """
    Of the trust-region algorithms, n_steps among them.

    Tianshou makes ten iterations of conjugate gradients and has a damping of 0.1, whatever it is told: so have all.
    """
    shared = {
        "cg_max_steps": 10, "cg_damping": 0.1, "target_kl": 0.01, "learning_rate": 1e-3, "gamma": 0.99, "gae_lambda": 0.95,
    }  # fmt: skip
    if n_envs <= 32:
        return {**shared, "n_steps": 2048 // n_envs, "batch_size": 128, "n_critic_updates": 20}
    return {**shared, "n_steps": 32, "batch_size": 8 * n_envs, "n_critic_updates": 5}


#: What only this package's algorithms can be told, where environments are many
CHEAPER = {"cg_residual_tol": 0.02}


class Peer(NamedTuple):
    """
    :param requirement: pip's, of what is not in this environment; empty: nothing
    :param script: in peers/
    :param packages: whose versions a row has
    """

    requirement: str
    script: str
    packages: tuple[str, ...]


PEERS = {
    "sb3_trpo_plus": Peer("", "stable_baselines.py", ("sb3-trpo-plus", "stable-baselines3")),
    "sb3_contrib": Peer("", "stable_baselines.py", ("sb3-contrib", "stable-baselines3")),
    "stable_baselines3": Peer("", "stable_baselines.py", ("stable-baselines3",)),
    "sbx": Peer("sbx-rl==0.28.0", "stable_baselines.py", ("sbx-rl", "jax", "stable-baselines3")),
    "tianshou": Peer("tianshou==2.0.1", "tianshou_on_policy.py", ("tianshou",)),
    "skrl": Peer("skrl[torch]==2.1.1", "skrl_trpo.py", ("skrl",)),
}


class Variant(NamedTuple):
    """
    :param algorithm: of one of PEERS
    :param vec_env: what steps the environments, by the library's name for it
    :param cores: that its processes may use
    :param differs: from the settings that all are to have
    """

    algorithm: str
    vec_env: str = "DummyVecEnv"
    cores: int = 1
    differs: str = ""

    @property
    def library(self) -> str:
        return self.algorithm.partition(".")[0]


class Workload(NamedTuple):
    """
    :param rollouts: of one measurement
    :param target: for the table
    :param has_memory: whether a row is to have the peak of the memory of all its processes
    """

    env: str
    n_envs: int
    rollouts: int
    variants: tuple[Variant, ...]
    target: str = ""
    repeats: int = 5
    has_memory: bool = False


#: Of this package's VecEnv classes, who has a core to gain by; CartPole has a vector environment of its own in Gymnasium
KINDS = {"DummyVecEnv": (1,), "GymnasiumVecEnv": (1,), "WorkerVecEnv": (1, 2), "EnvPoolVecEnv": (1, 2)}
N_ENVS = (1, 8, 32, 128, 256, 1024)
STEPS_A_SECOND = (2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
GROWTH = {"CartPole-v1": tuple(KINDS), "HalfCheetah-v4": ("DummyVecEnv", "WorkerVecEnv", "EnvPoolVecEnv")}


def growth_name(env: str, kind: str, cores: int, n_envs: int) -> str:
    return f"growth, {env}, {kind}, {cores} core{'s' * (cores > 1)}, {n_envs} environment{'s' * (n_envs > 1)}"


WORKLOADS = {
    "HalfCheetah-v4, 8 environments, one core": Workload(
        "HalfCheetah-v4", 8, 4,
        (
            Variant(OURS), Variant(CONTRIB), Variant("stable_baselines3.PPO"), Variant("sbx.PPO"),
            Variant("tianshou.TRPO", "DummyVectorEnv", differs="20 steps of the critic, each with the whole rollout, not 320"),
            Variant("tianshou.PPO", "DummyVectorEnv"),
            Variant("skrl.TRPO", "SyncVectorEnv"),
        ),
    ),
    "HalfCheetah-v4, 32 environments, two cores": Workload(
        "HalfCheetah-v4", 32, 6,
        (
            *(Variant(OURS, kind, 2) for kind in ("DummyVecEnv", "SubprocVecEnv", "WorkerVecEnv", "EnvPoolVecEnv")),
            *(Variant(CONTRIB, kind, 2) for kind in ("DummyVecEnv", "SubprocVecEnv", "WorkerVecEnv", "EnvPoolVecEnv")),
        ),
        "20,000 steps/s, and 4 times sb3-contrib on the better of SB3's VecEnvs",
    ),
    "Humanoid-v4, 32 environments, two cores": Workload(
        "Humanoid-v4", 32, 2,
        (
            Variant(OURS),
            *(Variant(OURS, kind, 2) for kind in ("SubprocVecEnv", "WorkerVecEnv", "EnvPoolVecEnv")),
            *(Variant(CONTRIB, kind, 2) for kind in ("DummyVecEnv", "SubprocVecEnv")),
        ),
        "1.8 times ours on one core",
    ),
    "CartPole-v1, 256 environments, two cores": Workload(
        "CartPole-v1", 256, 8,
        (
            *(Variant(OURS, kind, 2, "a cheaper step: cg_residual_tol=0.02") for kind in KINDS),
            *(Variant(CONTRIB, kind, 2) for kind in KINDS),
        ),
        "100,000 steps/s",
    ),
    "HalfCheetah-v4, a million steps, two cores": Workload(
        "HalfCheetah-v4", 32, 489, (Variant(OURS, "WorkerVecEnv", 2), Variant(OURS, "EnvPoolVecEnv", 2)),
        "50 s, 20,000 steps/s", repeats=1,
    ),
    **{
        growth_name(env, kind, cores, n_envs): Workload(
            env, n_envs, max(1, (16384 if env == "CartPole-v1" else 8192) // (settings(n_envs)["n_steps"] * n_envs)),
            (Variant(OURS, kind, cores),), repeats=3, has_memory=n_envs == max(N_ENVS),
        )
        for env, kinds in GROWTH.items() for kind in kinds for cores in KINDS[kind] for n_envs in N_ENVS
    },
    **{
        f"growth, {env}, sb3-contrib, DummyVecEnv, 1024 environments": Workload(
            env, 1024, 1, (Variant(CONTRIB),), repeats=3, has_memory=True
        )
        for env in GROWTH
    },
}  # fmt: skip


@contextmanager
def on_cores(n_cores: int) -> Iterator[None]:
    """Processes that are started in here may use so many; all of them where the system can't say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[-n_cores:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Process:
    """A variant that learns in a process of its own, with whatever processes it starts itself (peers/turns.py)."""

    def __init__(self, workload: Workload, variant: Variant) -> None:
        peer, is_ppo = PEERS[variant.library], variant.algorithm.endswith(".PPO")
        options = settings(workload.n_envs)
        n_steps = options.pop("n_steps")
        cheaper = CHEAPER if variant.library == "sb3_trpo_plus" and workload.n_envs > 32 else {}
        # For what is not of Stable-Baselines3's kind the script knows the library.
        algorithm = variant.algorithm if peer.script == "stable_baselines.py" else variant.algorithm.partition(".")[2]
        task = {
            "algorithm": algorithm, "env": workload.env, "vec_env": variant.vec_env, "n_envs": workload.n_envs,
            "n_steps": n_steps, "cores": variant.cores, "settings": PPO if is_ppo else {**options, **cheaper},
            "packages": [*peer.packages, "torch", "gymnasium", "mujoco", "numpy"],
        }  # fmt: skip
        python: str | Path = sys.executable
        if peer.requirement:
            python = python_with([peer.requirement], ROOT / ".peers" / variant.library, with_dependencies=True)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.name = f"{variant.algorithm}, {variant.vec_env}"
        self.n_steps = n_steps
        self._told = tempfile.TemporaryFile("w+")  # noqa: SIM115  # stop() closes it
        with on_cores(variant.cores):
            self._process = subprocess.Popen(
                [str(python), str(ROOT / "peers" / peer.script), json.dumps(task)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._told, text=True, bufsize=1,
                env={**os.environ, **threads}, start_new_session=True,
            )  # fmt: skip

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._told.seek(0)
            raise RuntimeError(f"{self.name} has ended:\n{self._told.read()[-4000:]}")
        return json.loads(line)

    def start(self, steps: int) -> None:
        assert self._process.stdin is not None
        print(steps, file=self._process.stdin)

    def seconds(self, steps: int) -> float:
        self.start(steps)
        return float(self.answer())

    def peak_megabytes(self, steps: int) -> float:
        """The most that all of its processes have at one time while it learns, shared pages counted once."""
        self.start(steps)
        peak = 0.0
        while not wait([self._process.stdout], timeout=0.05):  # type: ignore[list-item]  # a file, which has a fileno
            peak = max(peak, session_megabytes(self._process.pid))
        self.answer()
        return peak

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._told.close()


def session_megabytes(session: int) -> float:
    """Memory of all processes of a session; 0 where there is no /proc."""
    kilobytes = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # After the name in parentheses: state, parent, process group, session.
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            rollup = (folder / "smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        kilobytes += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return kilobytes / 1024


def measure(name: str, repeats: int | None) -> list[dict[str, Any]]:
    """
    A row for each variant of a workload.

    :param repeats: instead of the workload's
    """
    workload = WORKLOADS[name]
    processes: dict[Variant, Process] = {}
    versions: dict[Variant, dict[str, str]] = {}
    try:
        for variant in workload.variants:
            try:
                processes[variant] = Process(workload, variant)
            except subprocess.CalledProcessError as error:
                print(f"{variant.library} can't be installed, and is left out: {error}", file=sys.stderr)
                continue
            # One after the other: how long starting takes is not measured, and a machine may have little memory.
            versions[variant] = processes[variant].answer()
        steps = workload.rollouts * workload.n_envs * settings(workload.n_envs)["n_steps"]
        seconds: dict[Variant, list[float]] = {variant: [] for variant in processes}
        for _ in range(repeats or workload.repeats):
            for variant, process in processes.items():
                seconds[variant].append(process.seconds(steps))
        memory = {variant: process.peak_megabytes(steps) for variant, process in processes.items() if workload.has_memory}
        return [
            {
                "workload": name,
                "algorithm": variant.algorithm,
                "vec_env": variant.vec_env,
                "cores": variant.cores,
                "env": workload.env,
                "n_envs": workload.n_envs,
                "n_steps": process.n_steps,
                "seconds": round(statistics.median(seconds[variant]), 4),
                "steps_a_second": round(steps / statistics.median(seconds[variant])),
                "lowest": round(steps / max(seconds[variant])),
                "highest": round(steps / min(seconds[variant])),
                "repeats": len(seconds[variant]),
                "peak_megabytes": round(memory[variant]) if memory.get(variant) else "",
                "versions": json.dumps(versions[variant]),
            }
            for variant, process in processes.items()
        ]
    finally:
        for process in processes.values():
            process.stop()


def revision() -> str:
    """The commit that last changed the package, with a + if it was changed since."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", "sb3_trpo_plus"]
        return subprocess.run(command, cwd=ROOT.parent, check=True, capture_output=True, text=True).stdout.strip()

    return git("log", "-1", "--format=%h") + "+" * bool(git("status", "--porcelain"))


def run(names: list[str], repeats: int | None, again: bool, save: bool) -> list[dict[str, Any]]:
    """
    Measure workloads, and save each when it is done in the place of the rows that there were.

    :param again: whether also those that this revision has rows of
    :return: what was measured
    """
    machine = {key: value for key, value in speed.machine().items() if key in ("python", "machine", "gflops_a_core")}
    measured: list[dict[str, Any]] = []
    for name in names:
        rows: list[dict[str, Any]] = results_file.read(RESULTS)
        commit = revision()
        if not again and {row["commit"] for row in rows if row["workload"] == name} == {commit}:
            continue
        new = [{**row, "commit": commit, **machine} for row in measure(name, repeats)]
        for row in new:
            print(f"{name}: {row['algorithm']}, {row['vec_env']}: {row['steps_a_second']:,} steps/s", flush=True)
        measured += new
        if save:
            rows = [row for row in rows if row["workload"] != name] + new
            rows.sort(key=lambda row: list(WORKLOADS).index(row["workload"]))
            with RESULTS.open("w", newline="") as file:
                writer = csv.DictWriter(file, new[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    return measured


NAMES = {
    "sb3_trpo_plus": "ours", "sb3_contrib": "sb3-contrib", "stable_baselines3": "SB3", "sbx": "SBX", "tianshou": "Tianshou",
    "skrl": "skrl",
}  # fmt: skip


def described(row: dict[str, Any]) -> tuple[str, str]:
    """Library and algorithm as a reader knows them."""
    library, _, algorithm = row["algorithm"].partition(".")
    return NAMES[library], algorithm


def print_tables(rows: list[dict[str, Any]]) -> None:
    """As Markdown."""
    for name, workload in WORKLOADS.items():
        found = [row for row in rows if row["workload"] == name]
        if not found or name.startswith("growth"):
            continue
        print(f"\n{name}{'; target: ' * bool(workload.target)}{workload.target}:\n")
        print("| library | algorithm | environments in | cores | steps/s | lowest to highest | ours is faster by | differs |")
        print("|---|---|---|---|---|---|---|---|")
        best = max(float(row["steps_a_second"]) for row in found if row["algorithm"] == OURS)
        differs = {(variant.algorithm, variant.vec_env): variant.differs for variant in workload.variants}
        for row in found:
            of_row = float(row["steps_a_second"])
            figures = f"{of_row:,.0f} | {float(row['lowest']):,.0f} to {float(row['highest']):,.0f} | {best / of_row:.1f}"
            note = differs.get((row["algorithm"], row["vec_env"]), "")
            library, algorithm = described(row)
            print(f"| {library} | {algorithm} | {row['vec_env']} | {row['cores']} | {figures} | {note} |")
    print_growth(rows)


def print_growth(rows: list[dict[str, Any]]) -> None:
    found = {row["workload"]: row for row in rows if row["workload"].startswith("growth")}
    for env, kinds in GROWTH.items() if found else ():
        print(f"\n{env}, ours, steps/s by number of environments:\n")
        print(f"| environments in | cores | {' | '.join(map(str, N_ENVS))} | memory with {max(N_ENVS)} |")
        print("|---" * (len(N_ENVS) + 3) + "|")
        lines = [(kind, cores, [growth_name(env, kind, cores, n) for n in N_ENVS]) for kind in kinds for cores in KINDS[kind]]
        contrib = f"growth, {env}, sb3-contrib, DummyVecEnv, 1024 environments"
        for kind, cores, names in [*lines, ("sb3-contrib, DummyVecEnv", 1, [*[""] * (len(N_ENVS) - 1), contrib])]:
            cells = [f"{float(found[name]['steps_a_second']):,.0f}" if name in found else "" for name in names]
            memory = f"{found[names[-1]]['peak_megabytes']} MB" if names[-1] in found else ""
            if any(cells):
                print(f"| {kind} | {cores} | {' | '.join(cells)} | {memory} |")


DRAWN_LIBRARIES = {
    "sb3_trpo_plus": colours.OURS, "sb3_contrib": colours.SB3_CONTRIB, "stable_baselines3": colours.PPO, "sbx": colours.PPO,
}  # fmt: skip
DRAWN_KINDS = {
    "DummyVecEnv": colours.REFERENCE, "GymnasiumVecEnv": colours.MEMBER, "WorkerVecEnv": colours.OURS,
    "EnvPoolVecEnv": colours.OTHER_MEMBER,
}  # fmt: skip


def draw(rows: list[dict[str, Any]]) -> None:
    """Bars for the workloads with peers, and lines for how steps a second grow."""
    from matplotlib.figure import Figure

    names = [name for name in WORKLOADS if any(row["workload"] == name for row in rows)]
    names = [name for name in names if not name.startswith("growth") and WORKLOADS[name].repeats > 1]
    by_name = {name: [row for row in rows if row["workload"] == name] for name in names}
    if names:
        height = 0.7 + 0.34 * sum(len(found) + 2 for found in by_name.values())
        figure = Figure(figsize=(colours.WIDTH, height), layout="constrained")
        all_axes = figure.subplots(len(names), 1, squeeze=False, height_ratios=[len(found) + 1 for found in by_name.values()])
        for axes, (name, found) in zip(all_axes[:, 0], by_name.items(), strict=True):
            for place, row in enumerate(found):
                colour = DRAWN_LIBRARIES.get(row["algorithm"].partition(".")[0], colours.REFERENCE)
                value = float(row["steps_a_second"])
                axes.barh(place, value, 0.8, color=colour)
                axes.text(value, place, f"  {value:,.0f}", verticalalignment="center")
            cores = [", one core" * (row["cores"] == "1" and "two" in name) for row in found]
            labels = [f"{' '.join(described(row))}, {row['vec_env']}{n}" for row, n in zip(found, cores, strict=True)]
            axes.set_yticks(range(len(found)), labels)
            axes.invert_yaxis()
            axes.margins(x=0.15)
            axes.set_title(name, loc="left", fontweight="bold", fontsize="medium")
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.xaxis.set_major_formatter("{x:,.0f}")
        all_axes[-1, 0].set_xlabel("steps a second of learn(): longer is better")
        figure.savefig(PICTURE, dpi=colours.DPI)
    draw_growth({row["workload"]: row for row in rows})


def draw_growth(found: dict[str, dict[str, Any]]) -> None:
    """
    :param found: rows by the name of their workload
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(colours.WIDTH, 4.2), layout="constrained")
    for axes, (env, kinds) in zip(figure.subplots(1, len(GROWTH)), GROWTH.items(), strict=True):
        for kind in kinds:
            for cores in KINDS[kind]:
                points = {n: found.get(growth_name(env, kind, cores, n)) for n in N_ENVS}
                drawn = {n: float(row["steps_a_second"]) for n, row in points.items() if row}
                style = "-" if cores == 2 else "--"
                label = f"{kind}, {cores} core{'s' * (cores > 1)}"
                axes.plot(list(drawn), list(drawn.values()), color=DRAWN_KINDS[kind], linestyle=style, marker=".", label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(N_ENVS, [f"{n:,}" for n in N_ENVS], fontsize="small")
        axes.set_yticks(STEPS_A_SECOND, [f"{n:,}" for n in STEPS_A_SECOND])
        axes.minorticks_off()
        axes.set_title(env)
        axes.set_xlabel("environments")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("steps a second of learn()")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(GROWTH_PICTURE, dpi=colours.DPI)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the tables of what was measured")
    parser.add_argument("--draw", action="store_true", help="only draw what was measured")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORKLOAD", help="those whose names begin so")
    parser.add_argument("--again", action="store_true", help="measure also what this revision has rows of")
    parser.add_argument("--repeats", type=int, help="instead of five, or three of how steps a second grow")
    parser.add_argument("--no-save", action="store_true", help="print, but leave the results as they are")
    args = parser.parse_args()
    if args.table:
        print_tables(results_file.read(RESULTS))
        return
    if args.draw:
        draw(results_file.read(RESULTS))
        return
    names = [name for name in WORKLOADS if name.startswith(tuple(args.only))]
    measured = run(names, args.repeats, args.again or args.no_save, not args.no_save)
    print_tables(measured if args.no_save else results_file.read(RESULTS))
    if not args.no_save:
        draw(results_file.read(RESULTS))


if __name__ == "__main__":
    main()
