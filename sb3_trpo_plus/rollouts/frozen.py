"""A plain policy as it was at some moment, whatever becomes of it later."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as module_of_torch

from sb3_trpo_plus.policies.plain import GLOBAL_HOOKS, HOOKS, ORIGINAL, distribution_of, features, plain_actor, plain_critic
from sb3_trpo_plus.trust_region.mlp import Mlp


class FrozenPolicy:
    """
    What a plain policy on the CPU does with observations, by copies of its parameters.

    :param policy: whose parameters are copied now
    :param actor: its actor
    :param critic: its critic
    """

    @classmethod
    def of(cls, policy: ActorCriticPolicy) -> "FrozenPolicy | None":
        """
        :return: None for a policy that is not plain, or not on the CPU
        """
        if policy.device.type != "cpu":
            return None
        actor, critic = plain_actor(policy), plain_critic(policy)
        return cls(policy, actor, critic) if actor is not None and critic is not None else None

    def __init__(self, policy: ActorCriticPolicy, actor: Mlp, critic: Mlp) -> None:
        self.policy = policy
        self.actor, self.critic = FrozenMlp(actor), FrozenMlp(critic)
        self.log_std = policy.log_std.detach().clone() if hasattr(policy, "log_std") else None
        self._own_distribution: Distribution = copy.copy(policy.action_dist)
        self._distribution = policy.action_dist
        self._functions = [
            (cls, name, function)
            for cls in {ActorCriticPolicy, *map(type, policy.modules())} & ORIGINAL.keys()
            for name, function in ORIGINAL[cls].items()
        ]
        self._settings = [(vars(one), _numbers(one)) for one in (policy, policy.action_dist, *actor.activations)]
        self._places = list(_places(policy))
        self._sizes = [(one, len(one)) for one in _grown_by_patches(policy)]
        self._parameters = [(parameter, parameter.data_ptr()) for parameter in policy.parameters()]
        self._bytes = [parameter.detach().numpy().tobytes() for parameter, _ in self._parameters]

    @th.no_grad()
    def values(self, observations: PyTorchObs) -> th.Tensor:
        """Shape (states, 1), as the policy's ``predict_values``."""
        return self.critic(features(self.policy, observations))[0]

    @th.no_grad()
    def distribution(self, observations: PyTorchObs, into: Distribution | None = None) -> Distribution:
        """
        As the policy's ``get_distribution``.

        :param observations: the states along the first dimension
        :param into: is changed to it; None: an object of this one's own, which the next call changes
        """
        outputs, latent = self.actor(features(self.policy, observations))
        return distribution_of(into or self._own_distribution, outputs, self.log_std, latent)

    def is_as_the_policy(self) -> bool:
        """
        Whether the policy does still the same.

        Parameters are compared by their bytes: who writes through ``.data`` or a NumPy view leaves no other trace.
        """
        return (
            all(container.get(name) is thing for container, name, thing in self._places)
            and self.policy.action_dist is self._distribution
            and all(len(one) == size for one, size in self._sizes)
            and vars(self._distribution).keys().isdisjoint(ORIGINAL[type(self._own_distribution)])
            and all(getattr(cls, name) is function for cls, name, function in self._functions)
            and all(now.get(name) == number for now, before in self._settings for name, number in before.items())
            and not any(getattr(module_of_torch, hooks) for hooks in GLOBAL_HOOKS)
            and all(
                parameter.data_ptr() == pointer and parameter.detach().numpy().tobytes() == before
                for (parameter, pointer), before in zip(self._parameters, self._bytes, strict=True)
            )
        )


class FrozenMlp:
    """
    A copy of an MLP, which gives its last hidden layer as well.

    :param network: whose parameters are copied now
    """

    def __init__(self, network: Mlp) -> None:
        self.layers = [(layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in network.layers]
        self.activations: list[nn.Module] = [*map(copy.copy, network.activations), nn.Identity()]

    def __call__(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Outputs, and what the last layer makes them of."""
        latent = outputs = inputs
        for (weight, bias), activation in zip(self.layers, self.activations, strict=True):
            latent, outputs = outputs, activation(F.linear(outputs, weight, bias))
        return outputs, latent


def _places(policy: ActorCriticPolicy) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Where each module and each parameter hangs."""
    for module in policy.modules():
        for container in (module._modules, module._parameters):
            yield from ((container, name, thing) for name, thing in container.items())


def _grown_by_patches(policy: ActorCriticPolicy) -> Iterator[dict[str, Any]]:
    """What a layer, a hook, or an attribute such as a ``forward`` of its own, is put into."""
    for module in policy.modules():
        yield from (vars(module), module._modules, module._parameters, *(getattr(module, name) for name in HOOKS))


def _numbers(thing: Any) -> dict[str, Any]:
    """Settings of a module or a distribution, but for whether it is in training mode."""
    return {name: value for name, value in vars(thing).items() if name != "training" and isinstance(value, (bool, int, float))}


Fill = Callable[[], None]


def filled_when_read(thing: Any, names: tuple[str, ...], fill: Fill) -> Callable[[], None]:
    """
    Let some attributes of an object be completed before anybody reads them.

    A copy of the object, pickled or not, is completed and of the original class.

    :param thing: whose class is exchanged for one made from it
    :param names: of the attributes
    :param fill: completes them, through ``vars``
    :return: takes that back
    """
    original: Any = type(thing)

    def attribute(name: str) -> property:
        def read(self: Any) -> Any:
            fill()
            if name not in vars(self):
                raise AttributeError(f"{original.__name__!r} object has no attribute {name!r}")
            return vars(self)[name]

        return property(read, lambda self, value: vars(self).update({name: value}))

    def reduce_ex(self: Any, protocol: Any) -> Any:
        fill()
        return _remade, (original, vars(self))

    members: dict[str, Any] = {name: attribute(name) for name in names}
    thing.__class__ = type(
        original.__name__, (original,), {**members, "__reduce_ex__": reduce_ex, "__module__": original.__module__}
    )

    def take_back() -> None:
        thing.__class__ = original

    return take_back


def _remade(kind: Any, attributes: dict[str, Any]) -> Any:
    """An object with these attributes: what pickles name."""
    thing = kind.__new__(kind)
    vars(thing).update(attributes)
    return thing
