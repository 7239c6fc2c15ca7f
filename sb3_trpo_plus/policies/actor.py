"""The actor of a policy: which parameters it has, and how the critic's fit is kept from changing it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo_plus.trust_region.flat import flatten


def actor_gradient(policy: ActorCriticPolicy, objective: th.Tensor) -> tuple[list[th.nn.Parameter], th.Tensor]:
    """
    Find the actor's parameters, those that the objective depends on, and the gradient with respect to them, in one backward
    pass.

    :param policy: its trainable parameters are searched
    :param objective: scalar, computed from the action distribution
    :return: the actor's parameters, in the order of ``policy.parameters()``, and the flat gradient
    :raises ValueError: the objective depends on no trainable parameter
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
    Give parameters other values within a ``with`` block, which autograd does not notice.

    :param parameters: afterwards they have their former storage, so their values, again
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
    Update the running statistics of the actor's layers, such as batch norm, by one forward pass over the rollout; neither the
    policy step nor the critic's fit updates them.

    :param policy: in training mode
    :param rollout_buffer: full
    :return: the layers with buffers that the action distribution is computed by
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
    Put the actor's layers in evaluation mode, so that the critic's forward passes leave the statistics of shared layers alone.

    :param policy: its modules' ``training`` flags are changed
    :param actor_parameters: as :func:`actor_gradient` returns them
    :param statistics: layers with running statistics, as :func:`refresh_running_statistics` returns them
    """
    actor = {id(parameter) for parameter in actor_parameters}
    for module in policy.modules():
        if module in statistics or any(id(parameter) in actor for parameter in module.parameters(recurse=False)):
            module.training = False
