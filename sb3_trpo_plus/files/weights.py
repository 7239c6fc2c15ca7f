"""The tensors of a saved model: real and finite numbers, of the shapes that its policy has."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.fields import Allowed
from sb3_trpo_plus.files.rebuild import POLICIES
from sb3_trpo_plus.files.tensors import read_tensors


def read_state_dicts(members: Mapping[str, bytes], names: Collection[str]) -> dict[str, Any]:
    """
    The state dicts in a saved model.

    :param members: of its archive, by name
    :param names: of the state dicts, which are in members with ``.pth`` behind
    :return: by name
    :raises UnsafeFileError: one has something else than tensors and plain values
    :raises ModelFileError: one is damaged, or not finite
    """
    return {name: state_in(f"{name}.pth", members[f"{name}.pth"]) for name in names}


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
            _check_finite(name, part, f"{within}.{key}".removeprefix("."))
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            _check_finite(name, part, f"{within}[{index}]")


def check_weights(objects: Mapping[str, Any], tensors: Mapping[str, Any], allowed: Allowed) -> None:
    """
    Check that the tensors are those of the policy that the attributes describe, before memory is reserved for it.

    :param objects: the checked attributes; nothing is checked where they name classes of the caller's
    :param tensors: the state dicts by name
    :param allowed: classes that the caller brings
    :raises ModelFileError: a tensor is missing, or has another shape
    """
    policy = _outline(objects, allowed)
    if policy is None or "policy" not in tensors:
        return
    expected = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    if objects.get("use_sde") and "log_std" in expected:
        full_std = (objects.get("policy_kwargs") or {}).get("full_std", True)
        expected["log_std"] = policy.mlp_extractor.latent_dim_pi, expected["log_std"][0] if full_std else 1
    found = tensors["policy"]
    for name, tensor in found.items():
        if not isinstance(tensor, th.Tensor):
            raise ModelFileError(f"its policy.pth has a {type(tensor).__name__} for {name}, not a tensor")
        if name in expected and tensor.shape != expected[name]:
            shapes = f"{tuple(tensor.shape)}, but in the policy that the file describes {expected[name]}"
            raise ModelFileError(f"its policy.pth has {name} with the shape {shapes}")
    lacking = [name for name in expected if name not in found]
    # SB3 itself loads files that lack these; they were saved before its version 1.7.
    if any("features_extractor" not in name for name in lacking):
        raise ModelFileError(f"its policy.pth lacks {lacking[0]}")
    _check_optimiser(tensors.get("policy.optimizer"), [expected[name] for name, _ in policy.named_parameters()])


def _outline(objects: Mapping[str, Any], allowed: Allowed) -> ActorCriticPolicy | None:
    """The policy without memory for its parameters; None if it has parts that only the caller knows."""
    policy_class, kwargs = objects.get("policy_class"), objects.get("policy_kwargs") or {}
    if allowed.classes or policy_class not in POLICIES or not isinstance(kwargs, dict):
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
            policy: ActorCriticPolicy = outline(*both_spaces, lambda _: 0.0, **kwargs)
            return policy
    except Exception as error:
        raise ModelFileError(
            f"its policy can't be built of its attributes ({type(error).__name__}: {str(error)[:300]})"
        ) from error
    finally:
        th.set_rng_state(generator)


def _check_optimiser(state: Any, shapes: list[tuple[int, ...]]) -> None:
    if state is None:
        return
    if not (isinstance(state, dict) and set(state) == {"state", "param_groups"} and isinstance(state["param_groups"], list)):
        raise ModelFileError("its policy.optimizer.pth holds something else than an optimiser's state")
    for index, entry in state["state"].items():
        shape = shapes[index] if isinstance(index, int) and 0 <= index < len(shapes) else None
        for name, value in entry.items() if isinstance(entry, dict) else ():
            if isinstance(value, th.Tensor) and value.numel() != 1 and tuple(value.shape) != shape:
                given = f"the shape {tuple(value.shape)}, not {shape}"
                raise ModelFileError(f"its policy.optimizer.pth has {name} of parameter {index} with {given}")
