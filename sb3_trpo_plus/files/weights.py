"""The tensors of a saved model: real and finite numbers, of the shapes that its policy has."""

import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.fields import Allowed
from sb3_trpo_plus.files.numbers import is_number
from sb3_trpo_plus.files.rebuild import POLICIES
from sb3_trpo_plus.files.tensors import read_tensors
from sb3_trpo_plus.files.words import one_line, shown


def read_state_dicts(members: Mapping[str, bytes], names: Collection[str]) -> dict[str, Any]:
    """
    The state dicts in a saved model.

    :param members: of its archive, by name
    :param names: of the state dicts, which are in members with ``.pth`` behind
    :return: by name
    :raises UnsafeFileError: one has something else than tensors and plain values
    :raises ModelFileError: one is damaged, or not finite
    """
    return {name: without_overshoot(state_in(f"{name}.pth", members[f"{name}.pth"])) for name in names}


def without_overshoot(state: dict[str, Any]) -> dict[str, Any]:
    """
    An optimiser's state whose rates are no longer below 0, where torch refuses them, but 0.

    A rollout may overshoot ``total_timesteps``, and SB3 takes a schedule beyond its end: many a file of sb3-contrib that was
    trained with a linear one has such a rate. The next update sets it anew.

    :param state: any state dict; those of something else than an optimiser are given back as they are
    """
    groups = state.get("param_groups")
    if not (isinstance(groups, list) and all(isinstance(group, dict) for group in groups)):
        return state
    rates = [_as_number(group.get("lr")) for group in groups]
    mended = [{**group, "lr": max(0.0, rate)} if is_number(rate) else group for group, rate in zip(groups, rates, strict=True)]
    return {**state, "param_groups": mended}


def _as_number(rate: Any) -> Any:
    """That of a tensor with one element, in which torch also keeps rates."""
    return rate.item() if isinstance(rate, th.Tensor) and rate.numel() == 1 else rate


def state_in(name: str, raw: bytes) -> dict[str, Any]:
    """As :func:`read_state_dicts`, of one member."""
    try:
        state = read_tensors(raw)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"its {name} has {error}") from error
    except ModelFileError as error:
        raise ModelFileError(f"its {name} is {error}: get the file again") from error
    if state is None:
        return {}
    if not isinstance(state, dict):
        raise ModelFileError(f"its {name} holds a {type(state).__name__}, not a dictionary")
    _check_finite(name, state)
    return state


def _check_finite(name: str, value: Any, within: str = "") -> None:
    if isinstance(value, th.Tensor):
        if not th.isfinite(value).all():
            raise ModelFileError(f"its {name} has {within} with elements that are not finite")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ModelFileError(f"its {name} has {value} for {within}")
    elif isinstance(value, dict):
        for key, part in value.items():
            _check_finite(name, part, one_line(f"{within}.{key}".removeprefix(".")))
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            _check_finite(name, part, f"{within}[{index}]")


def check_weights(objects: Mapping[str, Any], tensors: Mapping[str, Any], allowed: Allowed) -> None:
    """
    Check that the tensors are those of the policy that the attributes describe, before memory is reserved for it.

    :param objects: the checked attributes; where they name classes of the caller's, only the widths of layers are looked at
    :param tensors: the state dicts by name
    :param allowed: classes that the caller brings
    :raises ModelFileError: a tensor is missing, is one too many, or has another shape
    """
    found = tensors.get("policy", {})
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, th.Tensor):
            raise ModelFileError(f"its policy.pth has {shown(tensor)} for {shown(name)}, not a tensor")
    kwargs = objects.get("policy_kwargs") or {}
    _check_widths(kwargs.get("net_arch") if isinstance(kwargs, dict) else None, sum(map(th.Tensor.numel, found.values())))
    policy = _outline(objects, allowed)
    if policy is None or "policy" not in tensors:
        return
    expected = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    if objects.get("use_sde") and "log_std" in expected:
        expected["log_std"] = policy.mlp_extractor.latent_dim_pi, expected["log_std"][0] if kwargs.get("full_std", True) else 1
    for name, tensor in found.items():
        if name not in expected:
            raise ModelFileError(f"its policy.pth has {shown(name)}, which the policy that the file describes has not")
        if tuple(tensor.shape) != expected[name] or not tensor.is_floating_point():
            shapes = f"{tuple(tensor.shape)}, but in the policy that the file describes {expected[name]}"
            raise ModelFileError(f"its policy.pth has {name} of {tensor.dtype} with the shape {shapes}")
    for name in expected.keys() - found.keys():
        # SB3 itself loads files that lack these copies of the shared extractor; they were saved before its version 1.7.
        if not (policy.share_features_extractor and name.startswith(("pi_features_extractor.", "vf_features_extractor."))):
            raise ModelFileError(f"its policy.pth lacks {name}")
    if policy.share_features_extractor:
        _check_copies(found)
    of_parameters = [expected[name] for name, _ in policy.named_parameters()]
    check_optimiser(tensors.get("policy.optimizer"), policy.optimizer, of_parameters)


def _check_copies(found: Mapping[str, th.Tensor]) -> None:
    for name, tensor in found.items():
        _, prefix, rest = name.rpartition("features_extractor.")
        shared = found.get(f"features_extractor.{rest}")
        if prefix and shared is not None and not th.equal(tensor, shared):
            raise ModelFileError(f"its policy.pth has a {name} that differs from the extractor's that it shares")


def _check_widths(arch: Any, n_weights: int) -> None:
    for part in arch.values() if isinstance(arch, dict) else [arch]:
        widths = [width for width in part if isinstance(width, int)] if isinstance(part, (list, tuple)) else []
        if sum(one * other for one, other in pairwise(widths)) > n_weights:
            raise ModelFileError(f"its net_arch is {shown(arch)}, of more weights than the {n_weights:,} in its policy.pth")


def _outline(objects: Mapping[str, Any], allowed: Allowed) -> ActorCriticPolicy | None:
    """The policy without memory for its parameters; None if it has parts that only the caller knows."""
    policy_class, kwargs = objects.get("policy_class"), objects.get("policy_kwargs") or {}
    if policy_class not in POLICIES or not isinstance(kwargs, dict) or any(map(allowed.brings, kwargs.values())):
        return None
    both_spaces = objects.get("observation_space"), objects.get("action_space")
    # gSDE draws noise when it is built, which takes memory, and differs in the shape of log_std alone.
    without = ("use_sde", "full_std", "use_expln", "squash_output", "device")
    kwargs = {**{name: value for name, value in kwargs.items() if name not in without}, "ortho_init": False}
    arch = kwargs.get("net_arch")
    if isinstance(arch, (list, tuple)) and arch and isinstance(arch[0], dict):
        # Of the years before SB3 1.8, and as it converts it.
        kwargs["net_arch"] = arch[0]
    # SB3 moves a part of the policy to the device that this property names.
    outline = type(policy_class.__name__, (policy_class,), {"device": property(lambda _: th.device("meta"))})
    generator = th.get_rng_state()
    try:
        with th.device("meta"):
            policy: ActorCriticPolicy = outline(*both_spaces, lambda _: 1e-3, **kwargs)
            return policy
    except Exception as error:
        words = f"{type(error).__name__}: {str(error)[:300]}"
        raise ModelFileError(f"its policy can't be built of its attributes ({words})") from error
    finally:
        th.set_rng_state(generator)


def check_optimiser(state: Any, optimiser: th.optim.Optimizer, shapes: Sequence[tuple[int, ...]]) -> None:
    """
    Check an optimiser's state: that of another shape would be written to beyond its end.

    :param state: as ``optimiser.state_dict()`` gives it; None: there is none to check
    :param optimiser: that it is for, with one group
    :param shapes: of the parameters, in order
    :raises ModelFileError: it has another form, a setting out of its range, or a tensor of another shape
    """
    if state is None:
        return
    name = "its policy.optimizer.pth"
    if not (isinstance(state, dict) and set(state) == {"state", "param_groups"} and isinstance(state["state"], dict)):
        raise ModelFileError(f"{name} holds something else than an optimiser's state")
    groups = state["param_groups"]
    if not (isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], dict)):
        raise ModelFileError(f"{name} has not one group of parameters")
    settings = {key: value for key, value in groups[0].items() if key != "params"}
    if not all(_is_setting(value, optimiser.defaults.get(key)) for key, value in settings.items()):
        raise ModelFileError(f"{name} has the settings {shown(settings)}, which are not those of {type(optimiser).__name__}")
    # Numbers have been there since the first version; switches came later, and torch adds them.
    needed = {key for key, value in optimiser.defaults.items() if not (value is None or isinstance(value, bool))}
    if needed - settings.keys():
        raise ModelFileError(f"{name} lacks the settings {shown(sorted(needed - settings.keys()))}")
    if groups[0].get("params") != list(range(len(shapes))):
        raise ModelFileError(f"{name} is for other parameters than the policy's {len(shapes)}")
    used = {shapes[index] for index in state["state"] if type(index) is int and 0 <= index < len(shapes)}
    # At least one, since it checks the settings too.
    examples = {shape: _example(type(optimiser), {**optimiser.defaults, **settings}, shape) for shape in used or {(1,)}}
    for index, entry in state["state"].items():
        if not (type(index) is int and 0 <= index < len(shapes) and isinstance(entry, dict)):
            raise ModelFileError(f"{name} has the state {shown(entry)} for parameter {shown(index)}")
        is_empty, example = not entry, examples[shapes[index]]
        entry = {key: value for key, value in entry.items() if value is not None}
        if not is_empty and entry.keys() != example.keys():
            raise ModelFileError(f"{name} has {shown(sorted(map(str, entry)))} for parameter {index}, not {sorted(example)}")
        for key, value in entry.items():
            _check_moment(f"{name} has for {key} of parameter {index}", key, value, example[key])


def _check_moment(words: str, key: str, value: Any, example: Any) -> None:
    if isinstance(example, th.Tensor) and example.dim() > 0:
        shape = tuple(example.shape)
        if not (isinstance(value, th.Tensor) and tuple(value.shape) == shape and value.is_floating_point()):
            raise ModelFileError(f"{words} {_form(value)}, not a tensor of the shape {shape}")
        is_square = "sq" in key or "square" in key or "var" in key
    else:
        is_one = isinstance(value, (int, float)) or (isinstance(value, th.Tensor) and value.numel() == 1)
        if not is_one or isinstance(value, bool):
            raise ModelFileError(f"{words} {_form(value)}, not a number")
        is_square = key == "step"
    if is_square and bool((th.as_tensor(value) < 0).any()):
        raise ModelFileError(f"{words} numbers below 0")


def _example(cls: type[th.optim.Optimizer], settings: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """The state that such an optimiser keeps of a parameter of a shape; it also checks the settings' ranges."""
    parameter = th.nn.Parameter(th.zeros(shape))
    parameter.grad = th.ones(shape)
    known = inspect.signature(cls).parameters
    try:
        # Those three are about GPUs.
        elsewhere = {"capturable": False, "foreach": None, "fused": None}
        given = {**settings, **{key: value for key, value in elsewhere.items() if key in settings}}
        optimiser = cls([parameter], **{key: value for key, value in given.items() if key in known})
        optimiser.step()
    except Exception as error:
        raise ModelFileError(f"its policy.optimizer.pth has settings that {cls.__name__} refuses ({error})") from error
    return {key: value for key, value in optimiser.state[parameter].items() if value is not None}


def _is_setting(value: Any, default: Any) -> bool:
    """Whether a setting is of the kind of its default; those that have none come from other versions of torch."""
    if isinstance(default, (tuple, list)):
        return isinstance(value, (tuple, list)) and len(value) == len(default) and all(map(_is_setting, value, default))
    if value is None or isinstance(value, bool):
        return default is None or isinstance(default, bool)
    return isinstance(value, (int, float)) and not isinstance(default, (bool, tuple, list))


def _form(value: Any) -> str:
    return f"a tensor of the shape {tuple(value.shape)}" if isinstance(value, th.Tensor) else shown(value)
