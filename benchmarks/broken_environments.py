"""
What is left of a training whose environment gives numbers that are not finite, raises, gives a wrong observation, or dies?

Each run trains an algorithm on two Pendulums, in half of the runs in VecNormalize, of which one breaks at a random step: a
number that is NaN, infinite or so large that its square overflows, in a reward or in an observation, in each mode of
on_nonfinite; an exception; an observation of a wrong shape or of strings; a worker process that exits or is killed. It is
noted whether anything said so (an error or a warning), whether it named the environment, whether parameters and statistics
are finite, and whether the model can be saved, and goes on to learn with whole environments. sb3_contrib.TRPO gets the same.

    python benchmarks/broken_environments.py            # what is missing of 500 runs (ten minutes), print the table
    python benchmarks/broken_environments.py --table    # only print the table
"""

import os
import random
import re
import signal
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import results_file
import sb3_contrib
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO

RESULTS = Path(__file__).parent / "results" / "broken_environments.csv"
OURS, THEIRS = 400, 100
MEMBERS: list[Any] = [TRPO, NPG, PPOPenalty, VineTRPO]
NUMBERS = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "huge": 1e38}
OF_PROCESSES = ("exits", "killed")
FAULTS = [
    *(f"{quantity} {number}" for quantity in ("reward", "observation") for number in NUMBERS),
    *("raises", "shape", "strings", *OF_PROCESSES),
]
STEPS = 128


class Breaking(gym.Wrapper[Any, Any, Any, Any]):
    """
    Pendulum that breaks once.

    :param fault: which of ``FAULTS``; "" for none
    :param at: the step in which it happens, from 1
    """

    def __init__(self, fault: str, at: int) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.fault, self.at, self.total = fault, at, 0

    def step(self, action: Any) -> Any:
        if not np.isfinite(action).all():
            raise AssertionError("an action that is not finite")
        observation, reward, *rest = self.env.step(action)
        self.total += 1
        if self.total == self.at and self.fault:
            quantity, _, number = self.fault.partition(" ")
            if quantity == "reward":
                return observation, NUMBERS[number], *rest
            if quantity == "observation":
                observation[1] = NUMBERS[number]
            elif quantity == "raises":
                raise KeyError("broken")
            elif quantity == "exits":
                os._exit(1)
            elif quantity == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                observation = np.zeros(7, np.float32) if quantity == "shape" else np.array(["a"] * 3)
        return observation, reward, *rest


def environments(vec_env: Any, normalised: bool, index: int, fault: str, at: int) -> Any:
    env = vec_env([partial(Breaking, fault if i == index else "", at) for i in range(2)])
    return VecNormalize(env) if normalised else env


def finite(model: Any, env: Any) -> tuple[bool, bool]:
    """Whether the parameters are, and the statistics."""
    parameters = all(bool(part.isfinite().all()) for part in model.policy.parameters())
    if not isinstance(env, VecNormalize):
        return parameters, True
    of_observations: Any = env.obs_rms
    statistics = (env.ret_rms.mean, env.ret_rms.var, of_observations.mean, of_observations.var, env.returns)
    return parameters, all(bool(np.isfinite(part).all()) for part in statistics)


def goes_on(model: Any, normalised: bool) -> bool:
    """Whether it can be saved, and learns with whole environments."""
    before = [part.detach().clone() for part in model.policy.parameters()]
    env = environments(DummyVecEnv, normalised, 0, "", 0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder) / "model.zip")
        model.set_env(env)
        model.learn(STEPS)
    except Exception:
        return False
    moved = any(not th.equal(one, other) for one, other in zip(before, model.policy.parameters(), strict=True))
    return moved and all(finite(model, env))


def train(number: int) -> dict[str, Any]:
    """The row of a run."""
    th.set_num_threads(1)
    draw = random.Random(number)
    is_ours, fault = number < OURS, FAULTS[number % len(FAULTS)]
    member = draw.choice(MEMBERS)
    mode, normalised, index, at = (
        draw.choice(["raise", "skip", None]),
        draw.random() < 0.5,
        draw.randrange(2),
        draw.randint(1, 60),
    )
    vec_env = SubprocVecEnv if fault in OF_PROCESSES or (member is not VineTRPO and draw.random() < 0.1) else DummyVecEnv
    if vec_env is SubprocVecEnv and member is VineTRPO:
        member = TRPO
    if member is VineTRPO:
        # Its branches give each environment fewer steps of its own.
        at = 1 + at % 30
    member = member if is_ours else sb3_contrib.TRPO
    kwargs: dict[str, Any] = {"on_nonfinite": mode} if is_ours else {}
    kwargs.update({"n_rollout_states": 4, "rollout_length": 5} if member is VineTRPO else {})
    env = environments(vec_env, normalised, index, fault, at)
    model = member("MlpPolicy", env, n_steps=32, batch_size=64, seed=number, device="cpu", **kwargs)
    said, words = "nothing", ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.learn(STEPS)
        except Exception as error:
            said = f"error: {type(error).__name__}"
            words = " ".join([str(error), *getattr(error, "__notes__", [])])
    told = [str(one.message) for one in caught if "skipped" in str(one.message) or "not finite" in str(one.message)]
    if told and not words:
        said, words = "warning", " ".join(told)
    parameters, statistics = finite(model, env)
    return {
        "run": number,
        "algorithm": f"{'ours' if is_ours else 'sb3_contrib'} {member.__name__}",
        "vec_env": vec_env.__name__,
        "normalised": normalised,
        "on_nonfinite": mode if is_ours else "",
        "fault": fault,
        "environment": index,
        "step": at,
        "said": said,
        "named": bool(re.search(rf"nvironment {index}\b|Every environment|environment {index}'s", words)),
        "parameters_finite": parameters,
        "statistics_finite": statistics,
        "goes_on": goes_on(model, normalised),
        **results_file.described(),
    }


def print_table() -> None:
    """Counts, for each library and kind of fault."""
    print("| | fault | runs | error | warning | names the environment | parameters finite | statistics finite | goes on |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = results_file.read(RESULTS)
    kinds: dict[str, Callable[[str], bool]] = {
        "NaN or infinite reward": lambda fault: fault in ("reward nan", "reward inf", "reward -inf"),
        "NaN or infinite observation": lambda fault: fault in ("observation nan", "observation inf", "observation -inf"),
        "reward or observation of 1e38": lambda fault: fault.endswith("huge"),
        "exception": lambda fault: fault == "raises",
        "observation of a wrong shape, strings": lambda fault: fault in ("shape", "strings"),
        "worker exits or is killed": lambda fault: fault in OF_PROCESSES,
    }
    for library in ("ours", "sb3_contrib"):
        for kind, is_it in kinds.items():
            found = [row for row in rows if row["algorithm"].startswith(library) and is_it(row["fault"])]
            said = [sum(row["said"].startswith(word) for row in found) for word in ("error", "warning")]
            names = ("named", "parameters_finite", "statistics_finite", "goes_on")
            counts = [len(found), *said, *(sum(row[name] == "True" for row in found) for name in names)]
            print("|", " | ".join([library, kind, *map(str, counts)]), "|")


def main() -> None:
    args = results_file.parser(__doc__).parse_args()
    if not args.table:
        done = {int(row["run"]) for row in results_file.read(RESULTS)}
        results_file.run_all(RESULTS, train, [run for run in range(OURS + THEIRS) if run not in done], args.jobs)
    print_table()


if __name__ == "__main__":
    main()
