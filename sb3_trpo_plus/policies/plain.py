"""
Which policies and buffers are plain, so that closed forms may stand in for modules and autograd.

Everything that the closed forms take for granted is in :data:`ASSUMPTIONS`, and in :func:`plain_actor` and
:func:`plain_critic` for the one network that each is about. They are looked at anew in every rollout and update. A policy of
which one does not hold takes the general path, which is SB3's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn.modules import module as module_of_torch

from sb3_trpo_plus.trust_region.mlp import Mlp

ELEMENTWISE = (
    nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.SELU, nn.CELU, nn.Mish, nn.ReLU6,
    nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Identity,
)  # fmt: skip
DISTRIBUTIONS = (
    DiagGaussianDistribution, CategoricalDistribution, MultiCategoricalDistribution, BernoulliDistribution,
    StateDependentNoiseDistribution,
)  # fmt: skip
# Methods of policies that make them or write them to files, or that are not used in training.
MAKING = {
    "__init__", "_build", "_build_mlp_extractor", "_get_constructor_parameters", "_predict", "_update_features_extractor",
    "init_weights", "load", "load_from_vector", "make_features_extractor", "parameters_to_vector", "predict", "save",
}  # fmt: skip
OF_MODULES = {"__call__", "__getattr__", "_call_impl", "_wrapped_call_impl", "parameters", "modules", "train"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = (
    "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks",
)  # fmt: skip


def _functions(cls: type, base: type = object) -> dict[str, Any]:
    """The functions that a class and those between it and its base define, but for those that make or show it."""
    names = {name for one in cls.__mro__ if one not in base.__mro__ for name, value in vars(one).items() if callable(value)}
    return {name: getattr(cls, name) for name in names - {"__init__", "extra_repr", "reset_parameters"}}


def _methods_of_modules(cls: type) -> dict[str, Any]:
    return {name: getattr(cls, name) for name in OF_MODULES}


# As they are when this package is imported: a class that is patched later is as little plain as one that overrides them.
ORIGINAL: dict[type, dict[str, Any]] = {
    ActorCriticPolicy: {
        name: function
        for name, function in {**_functions(ActorCriticPolicy, nn.Module), **_methods_of_modules(ActorCriticPolicy)}.items()
        if name not in MAKING
    },
    # What the policy's own method goes on to.
    BasePolicy: {"extract_features": BasePolicy.extract_features},
    nn.Module: _methods_of_modules(nn.Module),
    **{cls: _functions(cls) for cls in (*DISTRIBUTIONS, RolloutBuffer, DictRolloutBuffer)},
    **{
        cls: _functions(cls, nn.Module)
        for cls in (FlattenExtractor, CombinedExtractor, MlpExtractor, nn.Flatten, nn.Linear, *ELEMENTWISE)
    },
    # They are only gone through.
    nn.Sequential: {"forward": nn.Sequential.forward},
    nn.ModuleDict: {},
}


def is_as_written(thing: Any, cls: type) -> bool:
    """
    Whether an object does what its class, or a class above it, did when this package was imported.

    :param thing: of any class
    :param cls: one of ``ORIGINAL``
    :return: False if one of its methods is overridden, or patched on the class or on the object itself
    """
    functions = ORIGINAL[cls]
    return (
        isinstance(thing, cls)
        and all(getattr(type(thing), name, None) is function for name, function in functions.items())
        and vars(thing).keys().isdisjoint(functions)
        # nn.Module.compile() leaves this.
        and vars(thing).get("_compiled_call_impl") is None
    )


def _has_sb3s_methods(policy: ActorCriticPolicy) -> bool:
    return is_as_written(policy, ActorCriticPolicy) and all(
        getattr(cls, name) is function for cls in (BasePolicy, nn.Module) for name, function in ORIGINAL[cls].items()
    )


def _has_a_distribution_of_sb3(policy: ActorCriticPolicy) -> bool:
    kind = type(policy.action_dist)
    return kind in DISTRIBUTIONS and is_as_written(policy.action_dist, kind)


def _has_features_of_its_own(policy: ActorCriticPolicy) -> bool:
    """gSDE whose variance is learned through the network is no Gaussian with a standard deviation apart."""
    return not getattr(policy.action_dist, "learn_features", False)


def _has_a_parameter_for_std(policy: ActorCriticPolicy) -> bool:
    return not hasattr(policy, "log_std") or isinstance(policy.log_std, nn.Parameter)


def _flattens_observations(policy: ActorCriticPolicy) -> bool:
    extractors = (policy.pi_features_extractor, policy.vf_features_extractor)
    return type(extractors[0]) is type(extractors[1]) and all(map(_flattens, extractors))


def _flattens(extractor: nn.Module) -> bool:
    parts: Iterable[nn.Module]
    if type(extractor) is FlattenExtractor:
        parts = [extractor.flatten]
    elif type(extractor) is CombinedExtractor:
        parts = extractor.extractors.values()
        if not is_as_written(extractor.extractors, nn.ModuleDict):
            return False
    else:
        return False
    return is_as_written(extractor, type(extractor)) and all(
        type(part) is nn.Flatten and is_as_written(part, nn.Flatten) for part in parts
    )


def _has_sb3s_mlp_extractor(policy: ActorCriticPolicy) -> bool:
    return type(policy.mlp_extractor) is MlpExtractor and is_as_written(policy.mlp_extractor, MlpExtractor)


def _has_no_hooks_on_modules(policy: ActorCriticPolicy) -> bool:
    return not any(getattr(module, hooks) for module in policy.modules() for hooks in HOOKS) and not any(
        getattr(module_of_torch, hooks) for hooks in GLOBAL_HOOKS
    )


def _has_no_hooks_on_parameters(policy: ActorCriticPolicy) -> bool:
    return not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in policy.parameters())


def _is_not_autocast(policy: ActorCriticPolicy) -> bool:
    return not th.is_autocast_enabled(policy.device.type)


#: What a closed form takes for granted of the whole policy: in words, and how it is found out
ASSUMPTIONS: dict[str, Callable[[ActorCriticPolicy], bool]] = {
    "methods are SB3's": _has_sb3s_methods,
    "the action distribution is SB3's": _has_a_distribution_of_sb3,
    "the variance is not learned through the network": _has_features_of_its_own,
    "the standard deviation is a parameter": _has_a_parameter_for_std,
    "observations are only flattened": _flattens_observations,
    "the MLP extractor is SB3's": _has_sb3s_mlp_extractor,
    "there are no hooks on modules": _has_no_hooks_on_modules,
    "there are no hooks on parameters": _has_no_hooks_on_parameters,
    "torch's autocast is off": _is_not_autocast,
}


def plain_actor(policy: ActorCriticPolicy) -> Mlp | None:
    """
    The MLP from the features to the action distribution's means or logits.

    :param policy: any policy
    :return: None if one of ``ASSUMPTIONS`` does not hold, or the network is not plain: a ``Sequential`` of Linear layers with
        a bias and elementwise activations in turn, and a Linear head, whose parameters are all trained and in no other place
    """
    return _plain(policy, "policy_net", "action_net")


def plain_critic(policy: ActorCriticPolicy) -> Mlp | None:
    """
    The MLP from the features to the value; as :func:`plain_actor`.

    :param policy: any policy
    :return: None if it is not plain
    """
    return _plain(policy, "value_net", "value_net")


def is_plain_buffer(buffer: RolloutBuffer) -> bool:
    """Whether it is one of SB3's own, which nobody has patched."""
    return type(buffer) in (RolloutBuffer, DictRolloutBuffer) and is_as_written(buffer, type(buffer))


def features(policy: ActorCriticPolicy, observations: PyTorchObs) -> th.Tensor:
    """
    The inputs of a plain policy's MLPs.

    :param policy: plain
    :param observations: the states along the first dimension
    :return: shape (states, inputs)
    """
    return BasePolicy.extract_features(policy, observations, policy.pi_features_extractor)


def distribution_of(
    distribution: Distribution, outputs: th.Tensor, log_std: th.Tensor | None, latent: th.Tensor
) -> Distribution:
    """
    The action distribution that a plain policy makes of its network's outputs.

    :param distribution: the policy's; is changed, as ``proba_distribution`` does
    :param outputs: means or logits, shape (states, outputs)
    :param log_std: of Gaussians and gSDE
    :param latent: the last hidden layer, for gSDE
    :return: the distribution, for these states
    """
    if isinstance(distribution, StateDependentNoiseDistribution):
        return distribution.proba_distribution(outputs, log_std, latent)  # type: ignore[arg-type]
    if isinstance(distribution, DiagGaussianDistribution):
        return distribution.proba_distribution(outputs, log_std)  # type: ignore[arg-type]
    return distribution.proba_distribution(outputs)


def _plain(policy: ActorCriticPolicy, hidden: str, head: str) -> Mlp | None:
    if not all(holds(policy) for holds in ASSUMPTIONS.values()):
        return None
    sequence = getattr(policy.mlp_extractor, hidden)
    if type(sequence) is not nn.Sequential or not is_as_written(sequence, nn.Sequential):
        return None
    modules = [*sequence, getattr(policy, head)]
    if not all(type(module) in (nn.Linear, *ELEMENTWISE) and is_as_written(module, type(module)) for module in modules):
        return None
    layers = [module for module in modules if type(module) is nn.Linear]
    if any(layer.bias is None for layer in layers):
        return None
    # SB3's own MlpExtractor begins with a layer and alternates the two; one that was edited may not.
    if any((type(module) is nn.Linear) != (place % 2 == 0) for place, module in enumerate(modules)):
        return None
    network = Mlp(layers, list(_out_of_place(module for module in modules if type(module) is not nn.Linear)))
    if not all(parameter.requires_grad for parameter in network.parameters) or _is_shared(policy, network):
        return None
    return network


def _out_of_place(activations: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The closed forms look at an activation's inputs again."""
    for activation in activations:
        if getattr(activation, "inplace", False):
            activation = copy.copy(activation)
            setattr(activation, "inplace", False)  # noqa: B010  (to mypy a module's attribute is a tensor)
        yield activation


def _is_shared(policy: ActorCriticPolicy, network: Mlp) -> bool:
    """Whether one of the network's parameters is in a second place, in it or elsewhere in the policy."""
    own = {id(parameter) for parameter in network.parameters}
    places = sum(id(parameter) in own for _, parameter in policy.named_parameters(remove_duplicate=False))
    return not len(own) == len(network.parameters) == places
