"""The value regression."""

import warnings
from collections.abc import Collection

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn import functional as F


def fit_critic(
    policy: ActorCriticPolicy,
    rollout_buffer: RolloutBuffer,
    actor_parameters: Collection[th.nn.Parameter],
    n_epochs: int,
    batch_size: int,
) -> float | None:
    """
    Regress the values on the returns by minibatch steps of the policy's optimiser on the mean squared error.

    Parameters that the critic shares with the actor stay where the trust region put them. A minibatch whose loss or
    gradient is not finite ends the fit with a warning, before it reaches the parameters or the optimiser.

    :param policy: its ``optimizer`` is used as it is
    :param rollout_buffer: full, with returns
    :param actor_parameters: not to be moved
    :param n_epochs: passes over the rollout
    :param batch_size: of a minibatch; the last one of a pass may be smaller
    :return: mean of the minibatches' losses, None when there was no step
    """
    actor = {id(parameter) for parameter in actor_parameters}
    critic_parameters = [p for p in policy.parameters() if p.requires_grad and id(p) not in actor]
    if not critic_parameters:
        return None

    losses = []
    policy.optimizer.zero_grad()
    for rollout in (minibatch for _ in range(n_epochs) for minibatch in rollout_buffer.get(batch_size)):
        loss = F.mse_loss(rollout.returns, policy.predict_values(rollout.observations).flatten())
        if not loss.requires_grad:
            break
        gradients = th.autograd.grad(loss, critic_parameters, allow_unused=True)
        norm = th.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        if not th.isfinite(loss + norm):
            warnings.warn(
                f"The critic's fit stopped early: a minibatch has loss {loss.item():.3g} and gradient norm {norm.item():.3g}. "
                "Look for very large returns or observations (VecNormalize scales both), or lower learning_rate"
            )
            break
        losses.append(loss.item())
        for parameter, gradient in zip(critic_parameters, gradients, strict=True):
            parameter.grad = gradient
        policy.optimizer.step()
    policy.optimizer.zero_grad()
    return float(np.mean(losses)) if losses else None
