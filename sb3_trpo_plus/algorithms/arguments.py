"""Checks of arguments: each one that can't be used is named at once, with what it is and what it may be."""

import difflib
import inspect
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv


class Range(NamedTuple):
    """
    The values that an argument may have.

    :param kind: ``Integral`` or ``Real``, for numbers that are finite and no truth values; ``object`` for anything else
    :param allows: whether a value of that kind is in the range
    :param words: for messages, what completes "must be"
    """

    kind: type
    allows: Callable[[Any], bool]
    words: str


FROM_0_TO_1 = Range(Real, lambda x: 0 <= x <= 1, "a number from 0 to 1")

POSITIVE = Range(Real, lambda x: x > 0, "a positive number")

AT_LEAST_0 = Range(Real, lambda x: x >= 0, "a number of at least 0")

FRACTION = Range(Real, lambda x: 0 < x < 1, "a number between 0 and 1, both excluded")

COUNT = Range(Integral, lambda x: x >= 1, "an integer of at least 1")

COUNT_OR_0 = Range(Integral, lambda x: x >= 0, "an integer of at least 0")

# Numbers that are 0 or 1 have always done.
FLAG = Range(object, lambda x: isinstance(x, (int, float)) and x in (0, 1), "True or False")

# Arguments that may be schedules, and the range of the values that a schedule may return.
SCHEDULES = {"gamma": FROM_0_TO_1, "target_kl": AT_LEAST_0, "ent_coef": AT_LEAST_0}


def one_of(*names: str) -> Range:
    """The range of an argument that must be one of some strings."""
    return Range(object, lambda x: isinstance(x, str) and x in names, " or ".join(map(repr, names)))


def or_none(allowed: Range) -> Range:
    """The range of an argument that may be None as well."""
    return Range(object, lambda x: x is None or _is_in(x, allowed), f"{allowed.words} or None")


_CALLABLE = Range(object, callable, "a class")
_KEYWORDS = Range(
    object, lambda x: isinstance(x, Mapping) and all(isinstance(key, str) for key in x), "a dict of keyword arguments"
)

#: Of SB3's arguments, which it keeps in attributes of these names
OF_SB3 = {
    "policy_class": Range(object, callable, "the name of a policy, or a class of policies"),
    "verbose": Range(object, lambda x: isinstance(x, int), "0, 1 or 2"),
    "seed": or_none(Range(Integral, lambda x: 0 <= x < 2**32, "an integer from 0 to 2**32 - 1")),
    "use_sde": FLAG,
    "sde_sample_freq": Range(Integral, lambda x: x >= -1, "an integer of at least -1"),
    "_stats_window_size": COUNT,
    "tensorboard_log": Range(object, lambda x: x is None or isinstance(x, (str, os.PathLike)), "a folder's name, or None"),
    "policy_kwargs": _KEYWORDS,
    "rollout_buffer_class": or_none(_CALLABLE),
    "rollout_buffer_kwargs": _KEYWORDS,
}

_OF_LEARN = {
    # Some train until a callback ends it.
    "total_timesteps": Range(
        object, lambda x: (isinstance(x, float) and x == math.inf) or _is_in(x, AT_LEAST_0), "a number of steps, at least 0"
    ),
    # SB3 takes a negative number for its absolute value, and RL Zoo gives it -1.
    "log_interval": or_none(Range(Real, lambda x: x != 0, "a number of rollouts, at least 1")),
    "tb_log_name": or_none(Range(object, lambda x: isinstance(x, str), "a string")),
    "reset_num_timesteps": FLAG,
    "progress_bar": FLAG,
}


def checked(name: str, value: Any, allowed: Range) -> Any:
    """
    An argument's value, with a Python number in place of NumPy's or torch's, which JSON and torch's loader do not know.

    :param name: of the argument, for the message
    :param value: as it was given
    :param allowed: what it may be
    :raises ValueError: it is something else, or not finite
    """
    found = _as_python(value)
    if not _is_in(found, allowed):
        raise ValueError(f"{name} must be {allowed.words}, but it is {reprlib.repr(value)}")
    return found


def scheduled(name: str, value: Any, remaining: float, allowed: Range) -> float:
    """
    The value of an argument that may be a schedule.

    :param name: of the argument, for the message
    :param value: a number, or a function of the remaining progress
    :param remaining: progress, from 1 to 0
    :param allowed: what the number may be
    :raises ValueError: it is something else, or not finite
    """
    if callable(value):
        name, value = f"{name} at progress_remaining={remaining:.3g}", value(remaining)
    number: float = checked(name, value, allowed)
    return number


def constant(name: str, value: Any, allowed: Range) -> Any:
    """
    The value of an argument that may be a schedule, and is none.

    :param name: of the argument, for the message
    :param value: as it was given
    :param allowed: what the number may be
    :raises ValueError: it is something else, or not finite
    """
    words = allowed.words
    if not isinstance(_as_python(value), Real):
        words += ", or a function of the remaining progress, which goes from 1 to 0"
    if isinstance(value, str) and value.startswith("lin_"):
        words += ". RL Zoo's 'lin_0.001' is LinearSchedule(0.001, 0.0, 1.0) of stable_baselines3.common.utils"
    return checked(name, value, allowed._replace(words=words))


def check_for_sb3(policy: Any, env: Any, verbose: Any, device: Any) -> None:
    """
    Check what SB3's constructor does not survive long enough for the other checks.

    :raises ValueError: one of them can't be used
    """
    check_policy = Range(
        object,
        lambda x: isinstance(x, str) or (callable(x) and not (isinstance(x, type) and not issubclass(x, BasePolicy))),
        OF_SB3["policy_class"].words,
    )
    checked("policy", policy, check_policy)
    checked("verbose", verbose, OF_SB3["verbose"])
    is_env = env is None or isinstance(env, (str, gym.Env, VecEnv)) or (hasattr(env, "step") and not isinstance(env, type))
    if not is_env:
        raise ValueError(
            f"env must be the id of a registered environment, an environment or a VecEnv, but it is {reprlib.repr(env)}"
        )
    try:
        th.empty(0, device=get_device(device))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"device must be 'auto', 'cpu', 'cuda' or another one of this machine, but it is {reprlib.repr(device)}: {reason}"
        ) from error


def check_learn(callback: Any, **arguments: Any) -> dict[str, Any]:
    """
    Check the arguments of ``learn``.

    :param callback: nothing, a callback, a function, or a list of callbacks
    :param arguments: the others
    :return: the others, numbers as Python's
    :raises ValueError: an argument is out of its range
    :raises TypeError: the callback is none
    """
    for one in callback if isinstance(callback, list) else [callback]:
        is_class = isinstance(one, type) and issubclass(one, BaseCallback)
        if is_class or not (one is None or isinstance(one, BaseCallback) or callable(one)):
            what = f"the class {one.__name__}: pass an instance of it" if is_class else reprlib.repr(one)
            raise TypeError(f"callback must be a callback, a function or a list of callbacks, but it is {what}")
    return {name: checked(name, value, _OF_LEARN[name]) for name, value in arguments.items()}


def check_names(given: Iterable[str], allowed: Iterable[str], call: str) -> None:
    """
    Check that keyword arguments are known, where Python does not because the function takes any.

    :param given: names of the keyword arguments
    :param allowed: names of those that there are
    :param call: the function's name, for the message
    :raises TypeError: as Python's own, with the nearest name
    """
    known = set(allowed)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f". Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{call} got an unexpected keyword argument {name!r}{hint}")


def names_of(algorithm: type) -> set[str]:
    """Names of the arguments of a class's constructor and of those of its base classes, which it may pass on."""
    found: set[str] = set()
    for base in algorithm.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            found |= {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    return found - {"self"}


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """
    Check that parameters, and the state of an optimiser, are finite.

    :param parameters: nested, as ``get_parameters`` gives them
    :raises ValueError: a tensor has NaN or infinite elements
    """
    for name, tensor in _tensors("", parameters):
        n_broken = int((~tensor.isfinite()).sum())
        if n_broken:
            raise ValueError(
                f"The parameters are not finite, and were not taken: {name} has {n_broken} NaN or infinite elements "
                f"of {tensor.numel()}"
            )


def _tensors(name: str, value: Any) -> Iterable[tuple[str, th.Tensor]]:
    if isinstance(value, th.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(f"{name}.{key}" if name else str(key), part)


def _is_in(value: Any, allowed: Range) -> bool:
    if allowed.kind is not object:
        if not isinstance(value, allowed.kind) or isinstance(value, bool):
            return False
        try:
            if not math.isfinite(value):  # type: ignore[arg-type]
                return False
        except OverflowError:
            return False
    return allowed.allows(value)


def _as_python(value: Any) -> Any:
    """A number of NumPy or torch, also in an array, and any other number, as Python's own; anything else as it is."""
    if isinstance(value, (np.generic, np.ndarray, th.Tensor)) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value
