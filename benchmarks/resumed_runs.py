"""
Does a training that is killed and resumed end as one that was never stopped?

For each algorithm, environment and VecEnv a training runs through in a process of its own. Others with the same seed get a
SIGKILL at random moments, while they start, collect, update or write a checkpoint, and are resumed from what is on the disk,
by a process that knows nothing else. At the end the parameters are compared, and beside them the optimiser, the normalisation
and episode statistics, the evaluations and the states of the random generators: by their hashes, so to the bit.

    python benchmarks/resumed_runs.py            # what is missing of 112 kills (half an hour), results/resumed_runs.csv
    python benchmarks/resumed_runs.py --table    # only print the table
"""

import argparse
import hashlib
import itertools
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from results_file import add, described, read
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, TrainingCheckpoint, VineTRPO
from sb3_trpo_plus.states import Restorable

RESULTS = Path(__file__).parent / "results" / "resumed_runs.csv"
ALGORITHMS: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "TRPO": (TRPO, 8192, {}),
    "NPG": (NPG, 8192, {}),
    "PPOPenalty": (PPOPenalty, 8192, {}),
    "VineTRPO": (VineTRPO, 16384, {"n_rollout_states": 16, "rollout_length": 20}),
}
ENVIRONMENTS = ("CartPole-v1", "HalfCheetah-v4")
VEC_ENVS: dict[str, Any] = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": SubprocVecEnv}
CASES = list(itertools.product(ALGORITHMS, ENVIRONMENTS, VEC_ENVS))
KILLS, KILLS_IN_A_RUN = 7, 4
STAGES = ("start", "rollout", "update", "checkpoint")


def environment(name: str, vec_env: str, seed: int, n_envs: int) -> VecNormalize:
    made = make_vec_env(name, n_envs, seed=seed, wrapper_class=Restorable, vec_env_cls=VEC_ENVS[vec_env])
    return VecNormalize(made, gamma=0.99)


def train(algorithm: str, env: str, vec_env: str, folder: Path) -> None:
    """One process: begin, or go on with what is in the folder, and print hashes of what it ends with."""
    cls, steps, kwargs = ALGORITHMS[algorithm]
    with (folder / "stage").open("r+b") as file:
        tell_stages(cls, mmap.mmap(file.fileno(), 1))
        training_env = environment(env, vec_env, 0, 2)
        if any((folder / "checkpoints").glob("*.zip")):
            model = cls.resume(folder / "checkpoints", training_env, device="cpu")
        else:
            model = cls("MlpPolicy", training_env, n_steps=128, batch_size=64, seed=1, device="cpu", **kwargs)
        evaluation = EvalCallback(environment(env, "DummyVecEnv", 2, 1), n_eval_episodes=1, eval_freq=1000, verbose=0)
        print("begun", flush=True)
        start = time.perf_counter()
        model.learn(steps, [evaluation, TrainingCheckpoint(folder / "checkpoints", seconds=0)])
        seconds = time.perf_counter() - start
    print(
        json.dumps(
            {"seconds": seconds, "parameters": hash_of(model.policy.state_dict()), "rest": hash_of(rest(model, evaluation))}
        )
    )
    model.env.close()


def tell_stages(cls: Any, stage: mmap.mmap) -> None:
    """Let a byte of a file say what the process is doing."""

    def told(place: int, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            before, stage[0] = stage[0], place
            try:
                return function(*args, **kwargs)
            finally:
                stage[0] = before

        return call

    stage[0] = 0
    for owner, name, place in ((cls, "collect_rollouts", 1), (cls, "train", 2), (TrainingCheckpoint, "on_update_end", 3)):
        setattr(owner, name, told(place, getattr(owner, name)))


def rest(model: Any, evaluation: EvalCallback) -> list[Any]:
    """What a training ends with besides the parameters."""
    normaliser = model.get_vec_normalize_env()
    return [
        model.policy.optimizer.state_dict()["state"],
        model.num_timesteps,
        model._n_updates,
        [vars(rms) for rms in (normaliser.obs_rms, normaliser.ret_rms)],
        [(episode["r"], episode["l"]) for episode in model.ep_info_buffer],
        model._last_obs,
        evaluation.evaluations_results,
        th.get_rng_state(),
        np.random.get_state(legacy=False)["state"],  # noqa: NPY002
        random.getstate()[1],
    ]


def hash_of(value: Any) -> str:
    digest = hashlib.sha256()

    def take(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                take(value[key])
        elif isinstance(value, (list, tuple)):
            for part in value:
                take(part)
        else:
            digest.update(np.asarray(value).tobytes())

    take(value)
    return digest.hexdigest()[:16]


def process(case: tuple[str, str, str], folder: Path) -> subprocess.Popen[str]:
    """A training in the folder that has been set up, and is about to learn."""
    (folder / "stage").write_bytes(b"\0")
    command = [sys.executable, __file__, "--train", *case, str(folder)]
    begun = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert begun.stdout is not None
    assert begun.stdout.readline() == "begun\n"
    return begun


def finished(case: tuple[str, str, str], folder: Path) -> dict[str, Any]:
    with process(case, folder) as running:
        output: dict[str, Any] = json.loads(running.communicate()[0])
    return output


def killed_run(case: tuple[str, str, str], reference: dict[str, Any], kills: int, draw: random.Random) -> dict[str, Any]:
    """A row about one training that was killed some times."""
    stages: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(kills):
            with process(case, folder) as running:
                time.sleep(draw.uniform(0, reference["seconds"] / kills))
                if running.poll() is None:
                    running.send_signal(signal.SIGKILL)
                    stages[STAGES[(folder / "stage").read_bytes()[0]]] += 1
        ended = finished(case, folder)
    row: dict[str, Any] = dict(zip(("algorithm", "env", "vec_env"), case, strict=True))
    row |= {"kills": stages.total(), **{f"in_{stage}": stages[stage] for stage in STAGES}}
    return row | {f"{part}_equal": ended[part] == reference[part] for part in ("parameters", "rest")} | described()


def run() -> None:
    for place, case in enumerate(CASES):
        rows = [row for row in read(RESULTS) if (row["algorithm"], row["env"], row["vec_env"]) == case]
        done, draw = sum(int(row["kills"]) for row in rows), random.Random(1000 * place + len(rows))
        if done >= KILLS:
            continue
        with tempfile.TemporaryDirectory() as folder:
            reference = finished(case, Path(folder))
        while done < KILLS:
            row = killed_run(case, reference, min(KILLS_IN_A_RUN, KILLS - done), draw)
            add(RESULTS, row)
            done += row["kills"]


def table() -> str:
    rows = read(RESULTS)
    columns = ["kills", *(f"in_{stage}" for stage in STAGES)]
    heads = ["killed", *(f"in {stage}" if stage != "start" else "while starting" for stage in STAGES)]
    lines = [
        f"| algorithm | environment | trainings | {' | '.join(heads)} | same parameters | same in all else |",
        "|---" * (len(heads) + 5) + "|",
    ]
    for algorithm, env in itertools.product(ALGORITHMS, ENVIRONMENTS):
        here = [row for row in rows if (row["algorithm"], row["env"]) == (algorithm, env)]
        numbers = [sum(int(row[column]) for row in here) for column in columns]
        equal = [[row[f"{part}_equal"] for row in here].count("True") for part in ("parameters", "rest")]
        lines.append(f"| {algorithm} | {env} | {len(here)} | {' | '.join(map(str, [*numbers, *equal]))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--train", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    th.set_num_threads(1)
    warnings.simplefilter("ignore")
    gym.logger.min_level = gym.logger.ERROR
    if args.train:
        algorithm, env, vec_env, folder = args.train
        train(algorithm, env, vec_env, Path(folder))
        sys.exit()
    if not args.table:
        run()
    print(table())
