"""Which environment of a ``VecEnv`` failed: SB3's exceptions do not say."""

import signal
import traceback
from multiprocessing import connection
from typing import Any, NoReturn

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_trpo_plus.envs.notes import add_note
from sb3_trpo_plus.envs.vec.workers import WorkerVecEnv
from sb3_trpo_plus.policies.observations import parts_of, whole_of

# What a pipe to a process raises when that has ended.
BROKEN_PIPE = (EOFError, BrokenPipeError, ConnectionResetError)
# Until the exit code of a process whose pipe is broken can be read, in seconds.
PATIENCE = 5.0


def raise_naming(error: Exception, env: VecEnv, when: str, observations: Any = None) -> NoReturn:
    """
    Raise an exception again, with the environment that it comes from where that can be found out.

    A note says it, so that the exception is the same to those who catch it; but where a process has ended SB3's has no message
    at all, and one of the same class takes its place.

    :param error: raised by a step or a reset, or by what was done with the observations
    :param env: the environments
    :param when: the step in words
    :param observations: the last ones, of all environments
    """
    base = env.unwrapped
    ended = _ended(base) if isinstance(error, BROKEN_PIPE) and isinstance(base, SubprocVecEnv) else None
    if ended is not None:
        raise type(error)(
            f"E{ended[1:]} {when}; what it raised, if it did, is printed above. The model can be saved, and be trained on "
            "with new environments: set_env(...)"
        ) from error
    if _is_named(error, base):
        add_note(error, f"{when[0].upper()}{when[1:]}")
        raise error
    words = _in_dummy(error, base) or _in_stack(error, base)
    if words is None and observations is not None:
        words = _unlike_the_space(observations, env)
    if words is not None:
        add_note(error, f"{words} {when}")
    raise error


def _ended(base: SubprocVecEnv) -> str | None:
    """The processes that have ended, in words; None if they all run."""
    # A pipe breaks a moment before its process ends.
    connection.wait([process.sentinel for process in base.processes], PATIENCE)
    found = []
    for index, process in enumerate(base.processes):
        code = process.exitcode
        if code is not None:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            found.append(f"environment {index} (process {process.pid}) {how}")
    return ", ".join(found) or None


def _is_named(error: Exception, base: VecEnv) -> bool:
    """Whether it comes from a ``WorkerVecEnv``, which has said from where."""
    frames = traceback.walk_tb(error.__traceback__)
    return isinstance(base, WorkerVecEnv) and any(frame.f_locals.get("self") is base for frame, _ in frames)


def _in_dummy(error: Exception, base: VecEnv) -> str | None:
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(base, DummyVecEnv) and frame.f_locals.get("self") is base and "env_idx" in frame.f_locals:
            return f"From environment {frame.f_locals['env_idx']}"
    return None


def _in_stack(error: Exception, base: VecEnv) -> str | None:
    """Observations of different shapes, or without one of the keys, can't be stacked."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_stack_obs" and isinstance(base, SubprocVecEnv):
            for index, observation in enumerate(frame.f_locals["obs_list"]):
                words = unlike(observation, base.observation_space)
                if words is not None:
                    return f"From environment {index}, whose observation {words}"
    return None


def _unlike_the_space(observations: Any, env: VecEnv) -> str | None:
    found = {}
    for index in range(env.num_envs):
        one = {key: part[index] for key, part in parts_of(observations).items()}
        words = unlike(whole_of(one), env.observation_space)
        if words is not None:
            found[index] = words
    if not found:
        return None
    # Stacked, numbers beside strings become strings as well.
    who = "Every environment" if len(found) == env.num_envs > 1 else f"Environment {min(found)}"
    return f"{who} gave an observation that {found[min(found)]}"


def unlike(observation: Any, space: Any) -> str | None:
    """How an observation differs from its space in shape or in kind, a sentence's second half; None if it does not."""
    if hasattr(space, "spaces"):
        if not isinstance(observation, dict) or space.spaces.keys() - observation.keys():
            return f"lacks some of {sorted(space.spaces)}"
        found = {key: unlike(observation[key], part) for key, part in space.spaces.items()}
        return next((f"at {key!r} {words}" for key, words in found.items() if words), None)
    array = np.asarray(observation)
    if array.dtype.kind not in "biuf":
        return f"is of dtype {array.dtype}, its space of {space.dtype}"
    return None if array.shape == space.shape else f"has shape {array.shape}, its space {space.shape}"
