"""
What is left of a saved model if the process is killed while it overwrites it, and what a save that survives that costs.

A process saves a model of 64 x 64 units to the same path again and again, with other parameters each time, and gets a SIGKILL
at a random moment. Then the file is loaded: it must be one of the models that were saved, whole. Both libraries take turns.
The cost is the median time of a save, without a kill, by turns, on the file system of the current folder; beside it that of a
write of the same bytes with and without fsync, and of a TrainingCheckpoint of eight environments. fsync is many times
slower while other programs are busy, so that the times are for a quiet moment.

    python benchmarks/kill_while_saving.py            # 100 kills of each (ten minutes), times, results/kill_while_saving.csv
    python benchmarks/kill_while_saving.py --table    # only print the table
"""

import argparse
import itertools
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sb3_contrib
import torch as th
from results_file import add, described, read
from stable_baselines3.common.env_util import make_vec_env

import sb3_trpo_plus
from sb3_trpo_plus import TrainingCheckpoint
from sb3_trpo_plus.files.atomic import write_whole

RESULTS = Path(__file__).parent / "results" / "kill_while_saving.csv"
LIBRARIES: dict[str, Any] = {"sb3_contrib": sb3_contrib.TRPO, "ours": sb3_trpo_plus.TRPO}
NAMES = {"sb3_contrib": "a model by sb3-contrib", "ours": "a model by ours"}
KILLS, TIMED = 100, 200
# A save takes 2 to 20 ms, depending on what else the machine does, so that kills fall into all parts of one.
LATEST = 0.05


def model_of(library: str) -> Any:
    return LIBRARIES[library]("MlpPolicy", "CartPole-v1", device="cpu", seed=0)


def fill(model: Any, number: float) -> None:
    """Give all parameters the same value, by which a mixture of two saves would show."""
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.fill_(number)


def save_until_killed(library: str, path: str) -> None:
    model = model_of(library)
    for number in itertools.count():
        fill(model, number)
        model.save(path)
        if number == 0:
            print("begun", flush=True)


def kill(library: str, seed: int) -> dict[str, Any]:
    """A row about one kill: whether a model was left."""
    moment = random.Random(seed).uniform(0, LATEST)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.zip"
        command = [sys.executable, __file__, "--save", library, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
        beside = len(list(Path(folder).iterdir())) - 1
        return {"library": library, "seed": seed, "kind": "kill", "lost": is_lost(library, path), "files_beside": beside}


def is_lost(library: str, path: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = LIBRARIES[library].load(path, device="cpu")
    except Exception:
        return True
    return len({number for parameter in model.policy.parameters() for number in parameter.flatten().tolist()}) != 1


def without_fsync(save: Callable[[], object]) -> None:
    with patch("os.fsync", lambda descriptor: None):
        save()


def time_saves() -> dict[str, float]:
    """Median times in milliseconds, of calls that take turns."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        calls: dict[str, Callable[[], object]] = {}
        for library in LIBRARIES:
            calls[library] = partial(model_of(library).save, folder / f"{library}.zip")
        calls["sb3_contrib"]()
        content = (folder / "sb3_contrib.zip").read_bytes()
        calls["a model by ours, without fsync"] = partial(without_fsync, calls["ours"])
        calls["the bytes alone"] = partial((folder / "bytes").write_bytes, content)
        calls["the bytes alone, atomic"] = partial(write_whole, folder / "atomic", content)
        for env in ("CartPole-v1", "HalfCheetah-v4"):
            checkpoint = TrainingCheckpoint(folder / env, seconds=1e9)
            sb3_trpo_plus.TRPO("MlpPolicy", make_vec_env(env, 8), n_steps=64, device="cpu", seed=0).learn(512, checkpoint)
            checkpoint.stop()
            calls[f"TrainingCheckpoint, 8 x {env}"] = partial(checkpoint.on_update_end, checkpoint)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(TIMED):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def run() -> None:
    done = {(row["library"], row["seed"], row["kind"]) for row in read(RESULTS)}
    for seed in range(KILLS):
        for library in LIBRARIES:
            if (library, str(seed), "kill") not in done:
                add(RESULTS, {**kill(library, seed), "ms": "", **described()})
    if not any(kind == "time" for _, _, kind in done):
        for library, milliseconds in time_saves().items():
            row = {"library": library, "seed": "", "kind": "time", "lost": "", "files_beside": "", "ms": f"{milliseconds:.2f}"}
            add(RESULTS, {**row, **described()})


def table() -> str:
    rows = read(RESULTS)
    lines = ["| what is saved | kills | lost | median time, ms |", "|---|---|---|---|"]
    for timed in (row for row in rows if row["kind"] == "time"):
        kills = [row["lost"] for row in rows if row["library"] == timed["library"] and row["kind"] == "kill"]
        counts = (len(kills), kills.count("True")) if kills else ("", "")
        name = NAMES.get(timed["library"], timed["library"])
        lines.append(f"| {name} | {counts[0]} | {counts[1]} | {timed['ms']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--save", nargs=2, metavar=("LIBRARY", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    th.set_num_threads(1)
    if args.save:
        save_until_killed(*args.save)
    if not args.table:
        run()
    print(table())
