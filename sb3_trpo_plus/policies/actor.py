"""The actor of a policy: which parameters it has, and what keeps it where the trust region put it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy

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
def refresh_running_statistics(policy: ActorCriticPolicy, rollout_buffer: RolloutBuffer) -> None:
    """
    Let batch norm layers of the actor see the rollout once, since neither the step nor the critic's fit moves them.

    :param policy: in training mode
    :param rollout_buffer: full
    """
    if any(isinstance(module, th.nn.modules.batchnorm._BatchNorm) for module in policy.modules()):
        policy.get_distribution(next(rollout_buffer.get(batch_size=None)).observations)


def hold_actor(policy: ActorCriticPolicy, actor_parameters: Sequence[th.nn.Parameter]) -> None:
    """
    Put the layers that hold the actor's parameters in evaluation mode: their running statistics then stay as they are.

    :param policy: the layers of which are looked at one by one
    :param actor_parameters: as :func:`actor_gradient` found them
    """
    actor = {id(parameter) for parameter in actor_parameters}
    for module in policy.modules():
        if any(id(parameter) in actor for parameter in module.parameters(recurse=False)):
            module.training = False
