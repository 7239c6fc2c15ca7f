"""What each attribute in a saved model may be, so that a value of another kind is refused where it is read."""

import collections
import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_trpo_plus.envs.pickling import spaces_in
from sb3_trpo_plus.files.errors import ModelFileError
from sb3_trpo_plus.files.numbers import is_number
from sb3_trpo_plus.files.rebuild import (
    ACTIVATION_CLASSES,
    EXTRACTORS,
    OPTIMISER_CLASSES,
    POLICIES,
    ROLLOUT_BUFFERS,
    is_schedule,
)
from sb3_trpo_plus.files.words import shown

MOST_LAYERS = 100
WIDEST_LAYER = 2**20
LARGEST_ROLLOUT = 2**36

# An allowed value, the words for it.
Field = tuple[Callable[[Any, "Allowed"], bool], str]


class Allowed:
    """
    Classes and functions of the caller's that a file may use, beside SB3's and torch's.

    :param classes: those that the caller passed
    :param algorithm: class that is to be loaded, whose policy aliases are allowed too
    """

    def __init__(self, classes: Collection[Any], algorithm: type[BaseAlgorithm]) -> None:
        self.classes = tuple(classes)
        self.policies = (*POLICIES, *algorithm.policy_aliases.values())

    def bring(self, value: Any) -> None:
        """Take the classes and functions in an attribute that this process has itself saved for the caller's."""
        parts = value.values() if isinstance(value, dict) else [value]
        self.classes += tuple(part for part in parts if callable(part))

    def is_class(self, value: Any, known: Collection[type], base: type) -> bool:
        """Whether a value is one of these classes, or one of the caller's that is derived from the base."""
        is_theirs = self.brings(value) and isinstance(value, type) and issubclass(value, base)
        return is_theirs or any(value is one for one in known)

    def brings(self, value: Any) -> bool:
        """Whether it is one of the caller's, or an instance of one."""
        return any(value is one for one in self.classes) or type(value) in self.classes


def is_plain(value: Any, allowed: Allowed, depth: int = 0) -> bool:
    """Whether a value is made of None, bools, finite numbers, text, arrays, schedules, and lists and dicts of those."""
    if depth > 20:
        return False
    if value is None or isinstance(value, (bool, str, int, np.bool_, np.integer, bytes)):
        return True
    if isinstance(value, (float, np.floating)):
        return bool(math.isfinite(value))
    if isinstance(value, (list, tuple, set, collections.deque)):
        return all(is_plain(part, allowed, depth + 1) for part in value)
    if isinstance(value, dict):
        return all(is_plain(part, allowed, depth + 1) for part in value.values())
    return isinstance(value, (np.ndarray, spaces.Space, np.dtype)) or is_schedule(value) or allowed.brings(value)


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(least <= value < 2**63)


def _is_layers(value: Any, depth: int = 0) -> bool:
    """Widths of layers, or of those of the actor and the critic by name; old files have both in a list."""
    if isinstance(value, dict) and depth < 2:
        return set(value) <= {"pi", "vf", "qf"} and all(_is_layers(part, 2) for part in value.values())
    if not (isinstance(value, (list, tuple)) and len(value) <= MOST_LAYERS):
        return False
    return all((_is_count(part, 1) and part <= WIDEST_LAYER) or (depth == 0 and _is_layers(part, 1)) for part in value)


# Arguments of SB3's policies; those of a policy of the caller's may be anything plain.
_POLICY_KWARGS: dict[str, Field] = {
    "net_arch": (
        lambda x, _: x is None or _is_layers(x),
        f"the widths of at most {MOST_LAYERS} layers, each at most {WIDEST_LAYER:,}",
    ),
    "activation_fn": (lambda x, a: a.is_class(x, ACTIVATION_CLASSES, th.nn.Module), "an activation of torch.nn"),
    "features_extractor_class": (
        lambda x, a: a.is_class(x, EXTRACTORS, BaseFeaturesExtractor),
        "a features extractor of SB3",
    ),
    "optimizer_class": (lambda x, a: a.is_class(x, OPTIMISER_CLASSES, th.optim.Optimizer), "an optimiser of torch.optim"),
    "features_extractor_kwargs": (
        lambda x, a: x is None or (isinstance(x, dict) and all(_is_argument(value, a) for value in x.values())),
        "a dictionary of plain values",
    ),
    "optimizer_kwargs": (lambda x, a: x is None or (isinstance(x, dict) and is_plain(x, a)), "a dictionary of plain values"),
}


def _is_argument(value: Any, allowed: Allowed) -> bool:
    """What an extractor or a policy may be told: plain values, and activations."""
    return is_plain(value, allowed) or allowed.is_class(value, ACTIVATION_CLASSES, th.nn.Module)


def _check_policy_kwargs(value: Any, allowed: Allowed) -> None:
    if not isinstance(value, dict):
        raise ModelFileError(f"is {shown(value)}, not a dictionary")
    for key, part in value.items():
        if key in _POLICY_KWARGS:
            is_allowed, words = _POLICY_KWARGS[key]
            if not is_allowed(part, allowed):
                raise ModelFileError(f"has {shown(part)} for {key}, not {words}")
        elif not isinstance(key, str) or not _is_argument(part, allowed):
            raise ModelFileError(f"has {shown(part)} for {shown(key)}, which is no plain value")


_COUNT: Field = (lambda x, _: _is_count(x), "an integer of at least 0")
_POSITIVE_COUNT: Field = (lambda x, _: _is_count(x, 1), "an integer of at least 1")
_BOOL: Field = (lambda x, _: isinstance(x, bool), "True or False")
_NUMBER: Field = (lambda x, _: is_number(x), "a finite number")
_NUMBER_OR_SCHEDULE: Field = (lambda x, a: is_number(x) or is_schedule(x) or a.brings(x), "a finite number or a schedule")
_SPACE: Field = (lambda x, _: isinstance(x, spaces.Space), "a space of Gymnasium")


def _is_episode(value: Any) -> bool:
    """What a Monitor notes at the end of an episode, or whether it was a success."""
    if isinstance(value, dict):
        return all(isinstance(value.get(key), (int, float, np.number)) for key in ("r", "l"))
    return isinstance(value, (bool, int, float, np.bool_, np.number))


_EPISODES: Field = (
    lambda x, a: x is None or (isinstance(x, collections.deque) and is_plain(list(x), a) and all(map(_is_episode, x))),
    "a deque of episodes",
)


def _is_observations(value: Any, _: Allowed) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
    return value is None or all(isinstance(part, np.ndarray) and part.ndim > 0 for part in parts)


_OBSERVATIONS: Field = (_is_observations, "an array, or a dictionary of arrays")

#: The attributes of SB3's on-policy algorithms and of this package's
FIELDS: dict[str, Field] = {
    **dict.fromkeys(("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_episode_num", "_n_updates"), _COUNT),
    **dict.fromkeys(("n_envs", "n_steps", "_stats_window_size"), _POSITIVE_COUNT),
    **dict.fromkeys(("use_sde", "normalize_advantage", "log_improvement_bound", "observations_normalized"), _BOOL),
    **dict.fromkeys(("gae_lambda", "cg_damping", "vf_coef", "max_grad_norm", "start_time"), _NUMBER),
    "_current_progress_remaining": _NUMBER,
    **dict.fromkeys(("learning_rate", "gamma", "target_kl", "ent_coef"), _NUMBER_OR_SCHEDULE),
    **dict.fromkeys(("observation_space", "action_space"), _SPACE),
    **dict.fromkeys(("ep_info_buffer", "ep_success_buffer"), _EPISODES),
    **dict.fromkeys(("_last_obs", "_last_original_obs", "_last_episode_starts"), _OBSERVATIONS),
    "seed": (lambda x, _: x is None or _is_count(x, -(2**62)), "an integer or None"),
    "verbose": (lambda x, _: _is_count(x, -100), "an integer"),
    "sde_sample_freq": (lambda x, _: _is_count(x, -1), "an integer of at least -1"),
    "policy_class": (lambda x, a: a.is_class(x, a.policies, BasePolicy), "a policy of SB3"),
    "rollout_buffer_class": (
        lambda x, a: x is None or a.is_class(x, ROLLOUT_BUFFERS, RolloutBuffer),
        "a rollout buffer of SB3",
    ),
    "rollout_buffer_kwargs": (lambda x, a: isinstance(x, dict) and is_plain(x, a), "a dictionary of plain values"),
    "on_nonfinite": (lambda x, _: x in (None, "raise", "skip"), "None, 'raise' or 'skip'"),
    "action_noise": (lambda x, _: x is None, "None"),
}  # fmt: skip


def _is_plain_or_infinite(value: Any, allowed: Allowed) -> bool:
    """Such as a best return so far."""
    return isinstance(value, float) or is_plain(value, allowed)


#: Names of the attributes that have a kind of their own; those of a user's may be anything plain
KINDS = {*FIELDS, "policy_kwargs"}


def check_field(name: str, value: Any, allowed: Allowed) -> None:
    """
    Check an attribute that a file gives.

    :param name: of the attribute
    :param value: what the file has for it
    :param allowed: classes that the caller brings
    :raises ModelFileError: it is of another kind; the message continues "its NAME ..."
    """
    if name == "policy_kwargs":
        _check_policy_kwargs(value, allowed)
        return
    is_allowed, words = FIELDS.get(name, (_is_plain_or_infinite, "a plain value"))
    if not is_allowed(value, allowed):
        raise ModelFileError(f"is {shown(value)}, not {words}")


def check_observations(data: dict[str, Any]) -> None:
    """
    Leave out the last observations if they are not of the spaces and the number of environments, so that learn() resets.

    :param data: the checked attributes, of which these may become None
    """
    last, n_envs = data.get("_last_obs"), data.get("n_envs")
    space = data.get("observation_space")
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    given = last if isinstance(last, dict) else {"": last}
    fit = last is not None and parts.keys() == given.keys()
    if not (fit and all(_fits(given[key], part, n_envs) for key, part in parts.items())):
        data["_last_obs"] = None


def _fits(array: Any, space: Any, n_envs: Any) -> bool:
    return isinstance(array, np.ndarray) and isinstance(space, spaces.Space) and array.shape == (n_envs, *(space.shape or ()))


def check_sizes(data: dict[str, Any]) -> None:
    """
    Check that the rollouts of a model fit into a machine, since loading reserves memory for one.

    :param data: the checked attributes
    :raises ModelFileError: they would take more than a terabyte
    """
    parts = spaces_in(data.get("observation_space"))
    widths = [math.prod(space.shape or (1,)) for space in parts if not isinstance(space, (spaces.Dict, spaces.Tuple))]
    if data.get("n_steps", 1) * data.get("n_envs", 1) * max(1, sum(widths)) > LARGEST_ROLLOUT:
        raise ModelFileError(
            f"its rollouts of n_steps={data['n_steps']} and n_envs={data['n_envs']} would take more memory than machines have"
        )
