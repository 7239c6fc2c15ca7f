"""
Which policies and buffers are plain: what they compute is known, so that closed forms may replace modules and autograd.

Everything that the closed forms assume of a policy is listed in :data:`ASSUMPTIONS`; what they assume of the actor's or the
critic's network is checked by :func:`plain_actor` and :func:`plain_critic`. All is checked again in every rollout and update.
A policy that violates an assumption takes the general path, through SB3's methods.
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
# These mix the elements of a state, but no states.
ROWWISE = (nn.LayerNorm,)
DISTRIBUTIONS = (
    DiagGaussianDistribution, CategoricalDistribution, MultiCategoricalDistribution, BernoulliDistribution,
    StateDependentNoiseDistribution,
)  # fmt: skip
# Methods of policies that are only used to construct, save or load them, or to predict: overriding them is harmless.
IRRELEVANT_METHODS = {
    "__init__", "_build", "_build_mlp_extractor", "_get_constructor_parameters", "_predict", "_update_features_extractor",
    "init_weights", "load", "load_from_vector", "make_features_extractor", "parameters_to_vector", "predict", "save",
}  # fmt: skip
OF_MODULES = {"__call__", "__getattr__", "_call_impl", "_wrapped_call_impl", "parameters", "modules", "train"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = (
    "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks",
)  # fmt: skip


def _functions(cls: type, base: type = object) -> dict[str, Any]:
    """The methods that a class inherits from below ``base``, apart from those that only construct or print an object."""
    names = {name for one in cls.__mro__ if one not in base.__mro__ for name, value in vars(one).items() if callable(value)}
    return {name: getattr(cls, name) for name in names - {"__init__", "extra_repr", "reset_parameters"}}


def _methods_of_modules(cls: type) -> dict[str, Any]:
    return {name: getattr(cls, name) for name in OF_MODULES}


# The methods at the time of import, by class: if a method is patched later, or overridden, the object is not plain.
ORIGINAL: dict[type, dict[str, Any]] = {
    ActorCriticPolicy: {
        name: function
        for name, function in {**_functions(ActorCriticPolicy, nn.Module), **_methods_of_modules(ActorCriticPolicy)}.items()
        if name not in IRRELEVANT_METHODS
    },
    # ActorCriticPolicy.extract_features calls it.
    BasePolicy: {"extract_features": BasePolicy.extract_features},
    nn.Module: _methods_of_modules(nn.Module),
    **{cls: _functions(cls) for cls in (*DISTRIBUTIONS, RolloutBuffer, DictRolloutBuffer)},
    **{
        cls: _functions(cls, nn.Module)
        for cls in (FlattenExtractor, CombinedExtractor, MlpExtractor, nn.Flatten, nn.Linear, *ELEMENTWISE, *ROWWISE)
    },
    # Containers, of which only forward matters, or nothing.
    nn.Sequential: {"forward": nn.Sequential.forward},
    nn.ModuleDict: {},
}


def is_as_written(thing: Any, cls: type) -> bool:
    """
    Whether an object has the methods that a class had when this package was imported.

    :param thing: object of any class
    :param cls: a key of ``ORIGINAL``
    :return: False if it is no instance of ``cls``, or one of the methods is overridden, or patched on a class or the object
    """
    functions = ORIGINAL[cls]
    return (
        isinstance(thing, cls)
        and all(getattr(type(thing), name, None) is function for name, function in functions.items())
        and vars(thing).keys().isdisjoint(functions)
        # Set by nn.Module.compile().
        and vars(thing).get("_compiled_call_impl") is None
    )


def _has_sb3s_methods(policy: ActorCriticPolicy) -> bool:
    return is_as_written(policy, ActorCriticPolicy) and all(
        getattr(cls, name) is function for cls in (BasePolicy, nn.Module) for name, function in ORIGINAL[cls].items()
    )


def _has_a_distribution_of_sb3(policy: ActorCriticPolicy) -> bool:
    kind = type(policy.action_dist)
    return kind in DISTRIBUTIONS and is_as_written(policy.action_dist, kind)


def _has_std_apart_from_network(policy: ActorCriticPolicy) -> bool:
    """With gSDE's ``learn_features``, the variance too depends on the network, which the closed forms do not cover."""
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
    return not (has_global_hooks() or any(getattr(module, hooks) for module in policy.modules() for hooks in HOOKS))


def has_global_hooks() -> bool:
    """Whether hooks are registered on all modules of the process."""
    return any(getattr(module_of_torch, hooks) for hooks in GLOBAL_HOOKS)


def _has_no_hooks_on_parameters(policy: ActorCriticPolicy) -> bool:
    return not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in policy.parameters())


def _is_not_autocast(policy: ActorCriticPolicy) -> bool:
    return not th.is_autocast_enabled(policy.device.type)


#: What the closed forms assume of a policy, in words, and the function that checks it
ASSUMPTIONS: dict[str, Callable[[ActorCriticPolicy], bool]] = {
    "methods are SB3's": _has_sb3s_methods,
    "the action distribution is SB3's": _has_a_distribution_of_sb3,
    "the variance is not learned through the network": _has_std_apart_from_network,
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
    :return: None if one of ``ASSUMPTIONS`` does not hold, or the network is not plain. A plain one is a ``Sequential`` that
        alternates Linear layers with a bias and elementwise activations, followed by a Linear head; all its parameters are
        trainable, and none is shared with another layer
    """
    return _network(policy, "policy_net", "action_net") if _is_plain(policy) else None


def plain_critic(policy: ActorCriticPolicy) -> Mlp | None:
    """
    The MLP from the features to the value.

    :param policy: any policy
    :return: None under the same conditions as in :func:`plain_actor`
    """
    return _network(policy, "value_net", "value_net") if _is_plain(policy) else None


def known_modules(policy: ActorCriticPolicy) -> tuple[list[nn.Module], list[nn.Module]] | None:
    """
    The modules, in their order, by which a policy computes means or logits from the features, and those for the value.

    :param policy: any policy
    :return: None if one of ``ASSUMPTIONS`` does not hold, or a module is none of Linear with a bias, ``ELEMENTWISE`` and
        ``ROWWISE``. The last one is Linear, each treats every state on its own, and none writes into the features
    """
    if not _is_plain(policy):
        return None
    networks = []
    for hidden, head in (("policy_net", "action_net"), ("value_net", "value_net")):
        modules = [*_in_order(getattr(policy.mlp_extractor, hidden)), getattr(policy, head)]
        known = (nn.Linear, *ELEMENTWISE, *ROWWISE)
        if not all(type(module) in known and is_as_written(module, type(module)) for module in modules):
            return None
        if any(type(module) is nn.Linear and module.bias is None for module in modules):
            return None
        if type(modules[-1]) is not nn.Linear or type(modules[0]) in ELEMENTWISE:
            return None
        networks.append(modules)
    return networks[0], networks[1]


def _in_order(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a ``Sequential`` calls, also by others within it."""
    if isinstance(module, nn.Sequential) and is_as_written(module, nn.Sequential):
        for part in module:
            yield from _in_order(part)
    else:
        yield module


def is_plain_buffer(buffer: RolloutBuffer) -> bool:
    """Whether it is a ``RolloutBuffer`` or ``DictRolloutBuffer``, not a subclass, with unpatched methods."""
    return type(buffer) in (RolloutBuffer, DictRolloutBuffer) and is_as_written(buffer, type(buffer))


def features(policy: ActorCriticPolicy, observations: PyTorchObs) -> th.Tensor:
    """
    The inputs of a plain policy's MLPs: the preprocessed, flattened observations.

    :param policy: plain
    :param observations: the states along the first dimension
    :return: shape (states, inputs)
    """
    return BasePolicy.extract_features(policy, observations, policy.pi_features_extractor)


def distribution_of(
    distribution: Distribution, outputs: th.Tensor, log_std: th.Tensor | None, latent: th.Tensor
) -> Distribution:
    """
    Set the parameters of an action distribution, as a plain policy does.

    :param distribution: of the policy's class; changed in place by ``proba_distribution``
    :param outputs: means or logits, shape (states, outputs)
    :param log_std: the policy's, used for Gaussians and gSDE
    :param latent: activations of the last hidden layer, used for gSDE, shape (states, features)
    :return: ``distribution``
    """
    if isinstance(distribution, StateDependentNoiseDistribution):
        return distribution.proba_distribution(outputs, log_std, latent)  # type: ignore[arg-type]
    if isinstance(distribution, DiagGaussianDistribution):
        return distribution.proba_distribution(outputs, log_std)  # type: ignore[arg-type]
    return distribution.proba_distribution(outputs)


def _is_plain(policy: ActorCriticPolicy) -> bool:
    return all(holds(policy) for holds in ASSUMPTIONS.values())


def _network(policy: ActorCriticPolicy, hidden: str, head: str) -> Mlp | None:
    sequence = getattr(policy.mlp_extractor, hidden)
    if type(sequence) is not nn.Sequential or not is_as_written(sequence, nn.Sequential):
        return None
    modules = [*sequence, getattr(policy, head)]
    if not all(type(module) in (nn.Linear, *ELEMENTWISE) and is_as_written(module, type(module)) for module in modules):
        return None
    layers = [module for module in modules if type(module) is nn.Linear]
    if any(layer.bias is None for layer in layers):
        return None
    # SB3's MlpExtractor alternates Linear layers and activations; a user's edit may have broken that.
    if any((type(module) is nn.Linear) != (place % 2 == 0) for place, module in enumerate(modules)):
        return None
    network = Mlp(layers, list(_out_of_place(module for module in modules if type(module) is not nn.Linear)))
    if not all(parameter.requires_grad for parameter in network.parameters) or _is_shared(policy, network):
        return None
    return network


def _out_of_place(activations: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Not in place, since the closed forms use an activation's inputs again."""
    for activation in activations:
        if getattr(activation, "inplace", False):
            activation = copy.copy(activation)
            setattr(activation, "inplace", False)  # noqa: B010  (to mypy a module's attribute is a tensor)
        yield activation


def _is_shared(policy: ActorCriticPolicy, network: Mlp) -> bool:
    """Whether one of the network's parameters is registered a second time, in the network or elsewhere in the policy."""
    own = {id(parameter) for parameter in network.parameters}
    places = sum(id(parameter) in own for _, parameter in policy.named_parameters(remove_duplicate=False))
    return not len(own) == len(network.parameters) == places
