"""The actor of a policy: which parameters it has, and what keeps it where the trust region put it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo_plus.trust_region.flat import flatten


def actor_gradient(policy: ActorCriticPolicy, objective: th.Tensor) -> tuple[list[th.nn.Parameter], th.Tensor]:
    """
    Find the actor, and its gradient, by one backward pass: the actor's parameters are those the objective depends on.

    :param policy: whose trainable parameters are looked at, in their order
    :param objective: scalar made from the action distribution
    :return: the actor's parameters, and the flat gradient by them
    :raises ValueError: when the objective depends on none of them
    """
    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if objective.requires_grad and trainable:
        gradients = th.autograd.grad(objective, trainable, allow_unused=True)
        found = [(p, g) for p, g in zip(trainable, gradients, strict=True) if g is not None]
        if found:
            return [p for p, _ in found], flatten([g for _, g in found])
    raise ValueError(
        f"The action distribution of {type(policy).__name__} depends on none of the policy's trainable parameters, so there "
        "is nothing to optimise: make its networks submodules of the policy, leave their requires_grad on, and do not "
        "switch gradients off in get_distribution()"
    )


@contextmanager
def parameters_at(parameters: Sequence[th.Tensor], values: Sequence[th.Tensor]) -> Iterator[None]:
    """
    Give parameters other values for a while, without a trace in autograd's graphs.

    :param parameters: they have their own storage again afterwards
    :param values: of the same shapes
    """
    own = [parameter.data for parameter in parameters]
    try:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, value in zip(parameters, own, strict=True):
            parameter.data = value


@th.no_grad()
def refresh_running_statistics(policy: ActorCriticPolicy, rollout_buffer: RolloutBuffer) -> list[nn.Module]:
    """
    Let the actor's layers that keep statistics, such as batch norm, see the rollout once, since neither the step nor the
    critic's fit moves them.

    :param policy: in training mode
    :param rollout_buffer: full
    :return: those layers
    """
    with_buffers = [module for module in policy.modules() if module._buffers]
    if not with_buffers:
        return []
    passed: dict[int, nn.Module] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, _: passed.update({id(module): module})) for module in with_buffers
    ]
    try:
        policy.get_distribution(next(rollout_buffer.get(batch_size=None)).observations)
    finally:
        for hook in hooks:
            hook.remove()
    return list(passed.values())


def hold_actor(
    policy: ActorCriticPolicy, actor_parameters: Sequence[th.nn.Parameter], statistics: Sequence[nn.Module]
) -> None:
    """
    Put the actor's layers in evaluation mode: a pass of the critic through those that they share then changes nothing in them.

    :param policy: the layers of which are looked at one by one
    :param actor_parameters: as :func:`actor_gradient` found them
    :param statistics: layers that keep statistics, as :func:`refresh_running_statistics` found them
    """
    actor = {id(parameter) for parameter in actor_parameters}
    for module in policy.modules():
        if module in statistics or any(id(parameter) in actor for parameter in module.parameters(recurse=False)):
            module.training = False
