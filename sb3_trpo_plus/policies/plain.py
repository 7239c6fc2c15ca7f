"""Which networks of an SB3 policy are plain MLPs, for which closed forms are faster than modules and autograd."""

from itertools import pairwise

import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo_plus.trust_region.mlp import Mlp

ELEMENTWISE = (
    nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.SELU, nn.CELU, nn.Mish, nn.ReLU6,
    nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Identity,
)  # fmt: skip
DISTRIBUTIONS = (
    DiagGaussianDistribution, CategoricalDistribution, MultiCategoricalDistribution, BernoulliDistribution,
    StateDependentNoiseDistribution,
)  # fmt: skip
# What the closed forms stand in for: a policy that changes any of these is not plain.
METHODS = (
    "__call__", "forward", "extract_features", "get_distribution", "predict_values", "evaluate_actions",
    "_get_action_dist_from_latent", "reset_noise", "set_training_mode",
)  # fmt: skip


def plain_actor(policy: ActorCriticPolicy) -> Mlp | None:
    """
    The MLP from the features to the action distribution's means or logits.

    :param policy: any policy
    :return: None if it is not plain: other layers or activations, an extractor that computes, hooks, methods of its own
    """
    return _plain(policy, "policy_net", "action_net")


def plain_critic(policy: ActorCriticPolicy) -> Mlp | None:
    """
    The MLP from the features to the value; as :func:`plain_actor`.

    :param policy: any policy
    :return: None if it is not plain
    """
    return _plain(policy, "value_net", "value_net")


def features(policy: ActorCriticPolicy, observations: PyTorchObs) -> th.Tensor:
    """
    The inputs of a plain policy's MLPs.

    :param policy: plain
    :param observations: the states along the first dimension
    :return: shape (states, inputs)
    """
    return BasePolicy.extract_features(policy, observations, policy.pi_features_extractor)


def _plain(policy: ActorCriticPolicy, hidden: str, head: str) -> Mlp | None:
    if not _does_as_sb3(policy):
        return None
    modules = [*getattr(policy.mlp_extractor, hidden), getattr(policy, head)]
    layers = [module for module in modules if type(module) is nn.Linear]
    activations = [module for module in modules if type(module) in ELEMENTWISE]
    if len(layers) + len(activations) < len(modules) or any(layer.bias is None for layer in layers):
        return None
    # SB3's own MlpExtractor alternates the two; one that was edited may not.
    if any((type(one) is nn.Linear) == (type(other) is nn.Linear) for one, other in pairwise(modules)):
        return None
    network = Mlp(layers, activations)
    frozen = not all(parameter.requires_grad for parameter in network.parameters)
    if frozen or _registrations(policy, network) != len(network.parameters):
        return None
    return network


def _does_as_sb3(policy: ActorCriticPolicy) -> bool:
    return (
        isinstance(policy, ActorCriticPolicy)
        and all(getattr(type(policy), name) is getattr(ActorCriticPolicy, name) for name in METHODS)
        and not any(name in policy.__dict__ for name in METHODS)
        and type(policy.pi_features_extractor) is type(policy.vf_features_extractor) is FlattenExtractor
        and type(policy.mlp_extractor) is MlpExtractor
        and type(policy.action_dist) in DISTRIBUTIONS
        and not any(
            module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
            for module in policy.modules()
        )
    )


def _registrations(policy: ActorCriticPolicy, network: Mlp) -> int:
    """How often the network's parameters occur in the whole policy: more often than once each where some are shared."""
    own = {id(parameter) for parameter in network.parameters}
    return sum(id(parameter) in own for _, parameter in policy.named_parameters(remove_duplicate=False))
