"""Copies of plain policies, which later changes of the policy do not affect."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F

from sb3_trpo_plus.policies.plain import HOOKS, ORIGINAL, distribution_of, features, has_global_hooks, known_modules


class FrozenPolicy:
    """
    The values and action distributions of a policy of known modules on the CPU, computed with copies of its parameters.

    :param policy: its parameters are copied
    :param actor: the modules of its actor, as ``known_modules`` returns them
    :param critic: those of its critic
    """

    @classmethod
    def of(cls, policy: ActorCriticPolicy) -> "FrozenPolicy | None":
        """
        :return: a copy of the policy; None if it has other modules than those known, or is not on the CPU
        """
        if policy.device.type != "cpu":
            return None
        networks = known_modules(policy)
        return None if networks is None else cls(policy, *networks)

    def __init__(self, policy: ActorCriticPolicy, actor: list[nn.Module], critic: list[nn.Module]) -> None:
        self.policy, self._critic = policy, critic
        self.actor = FrozenNetwork(actor)
        self.log_std = policy.log_std.detach().clone() if hasattr(policy, "log_std") else None
        self._own_distribution: Distribution = copy.copy(policy.action_dist)
        self._distribution = policy.action_dist
        kinds = {cls for cls in ORIGINAL if cls in {ActorCriticPolicy, type(policy.action_dist), *map(type, policy.modules())}}
        self._functions = [(cls, name, function) for cls in kinds for name, function in ORIGINAL[cls].items()]
        self._functions += [(type(policy), name, function) for name, function in ORIGINAL[ActorCriticPolicy].items()]
        self.n_parameters = sum(parameter.numel() for parameter in policy.parameters())
        self._settings = [(vars(one), _numbers(one)) for one in (policy, policy.action_dist, *actor)]
        self._places = list(_places(policy))
        self._sizes = [(one, len(one)) for one in _grown_by_patches(policy)]
        self._bytes = _bytes(policy.parameters())
        self.read_critic()

    def read_critic(self) -> None:
        """Copy the critic again, which may have been fitted since."""
        self.critic = FrozenNetwork(self._critic)
        self._bytes.update(_bytes(parameter for module in self._critic for parameter in module.parameters()))

    @th.no_grad()
    def values(self, observations: PyTorchObs) -> th.Tensor:
        """What the policy's ``predict_values`` would have returned when it was copied, shape (states, 1)."""
        return self.critic(features(self.policy, observations))[0]

    @th.no_grad()
    def distribution(self, observations: PyTorchObs, into: Distribution | None = None) -> Distribution:
        """
        What the policy's ``get_distribution`` would have returned when it was copied.

        :param observations: tensor or dict of tensors, the states along the first dimension
        :param into: SB3 distribution to set and return; None: an internal one, which is reused by the next call
        """
        outputs, latent = self.actor(features(self.policy, observations))
        return distribution_of(into or self._own_distribution, outputs, self.log_std, latent)

    def is_as_the_policy(self) -> bool:
        """
        Whether the policy still computes the same as this copy.

        Parameters are compared byte by byte, since writes through ``.data`` or a NumPy view leave no other trace.
        """
        return (
            all(container.get(name) is thing for container, name, thing in self._places)
            and self.policy.action_dist is self._distribution
            and all(len(one) == size for one, size in self._sizes)
            and vars(self._distribution).keys().isdisjoint(ORIGINAL[type(self._own_distribution)])
            and all(getattr(cls, name) is function for cls, name, function in self._functions)
            and all(now.get(name) == number for now, before in self._settings for name, number in before.items())
            and not has_global_hooks()
            and _bytes(self._bytes) == self._bytes
        )


class FrozenLinear:
    """A copy of a linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        self.weight, self.bias = layer.weight.detach().clone(), layer.bias.detach().clone()

    def __call__(self, inputs: th.Tensor) -> th.Tensor:
        return F.linear(inputs, self.weight, self.bias)


class FrozenNetwork:
    """
    A copy of a network that also returns its last hidden layer.

    :param modules: are called one after another; their parameters are copied
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        *self.hidden, head = map(_frozen, modules)
        assert isinstance(head, FrozenLinear)
        self.head = head

    def __call__(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """The outputs, and the last hidden layer's activations, from which gSDE computes its noise."""
        for module in self.hidden:
            inputs = module(inputs)
        return self.head(inputs), inputs


def _frozen(module: nn.Module) -> FrozenLinear | nn.Module:
    if isinstance(module, nn.Linear):
        return FrozenLinear(module)
    return copy.deepcopy(module).requires_grad_(False) if module._parameters else copy.copy(module)


def _places(policy: ActorCriticPolicy) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Each submodule and parameter of the policy, with the dict and the name that it is registered under."""
    for module in policy.modules():
        for container in (module._modules, module._parameters):
            yield from ((container, name, thing) for name, thing in container.items())


def _grown_by_patches(policy: ActorCriticPolicy) -> Iterator[dict[str, Any]]:
    """The dicts that grow if somebody adds a submodule, a parameter, a hook, or an attribute such as ``forward``."""
    for module in policy.modules():
        yield from (vars(module), module._modules, module._parameters, *(getattr(module, name) for name in HOOKS))


def _bytes(parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, tuple[int, bytes]]:
    """Of each parameter where it lies in memory, and what is there."""
    return {parameter: (parameter.data_ptr(), parameter.detach().numpy().tobytes()) for parameter in parameters}


def _numbers(thing: Any) -> dict[str, Any]:
    """The numbers and flags among an object's attributes, such as an activation's slope; ``training`` left out."""
    return {name: value for name, value in vars(thing).items() if name != "training" and isinstance(value, (bool, int, float))}
