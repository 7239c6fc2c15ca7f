"""Minibatch steps on the mean squared error of the values."""

import math
import warnings
from collections.abc import Collection, Iterator

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn import functional as F

from sb3_trpo_plus.critic.flat_adam import FlatAdam
from sb3_trpo_plus.policies.plain import features, plain_critic
from sb3_trpo_plus.trust_region.flat import unflatten
from sb3_trpo_plus.trust_region.mlp import Mlp, MlpRegression


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

    A plain MLP whose optimiser is Adam is fitted on one flat vector, without autograd; the optimiser's state is read before
    and written after, in its own form.

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
    network = plain_critic(policy)
    if network is not None and _same(network.parameters, critic_parameters) and type(rollout_buffer) is RolloutBuffer:
        adam = FlatAdam.of(policy.optimizer, network.parameters)
        if adam is not None:
            return _fit_mlp(policy, network, adam, rollout_buffer, n_epochs, batch_size)
    return _fit_any(policy, critic_parameters, rollout_buffer, n_epochs, batch_size)


def _fit_any(
    policy: ActorCriticPolicy,
    critic_parameters: list[th.nn.Parameter],
    rollout_buffer: RolloutBuffer,
    n_epochs: int,
    batch_size: int,
) -> float | None:
    losses = []
    policy.optimizer.zero_grad()
    for rollout in (minibatch for _ in range(n_epochs) for minibatch in rollout_buffer.get(batch_size)):
        loss = F.mse_loss(rollout.returns, policy.predict_values(rollout.observations).flatten())
        if not loss.requires_grad:
            break
        gradients = th.autograd.grad(loss, critic_parameters, allow_unused=True)
        norm = th.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        if _is_broken(loss.item(), norm.item()):
            break
        losses.append(loss.item())
        for parameter, gradient in zip(critic_parameters, gradients, strict=True):
            parameter.grad = gradient
        policy.optimizer.step()
    policy.optimizer.zero_grad()
    return float(np.mean(losses)) if losses else None


def _fit_mlp(
    policy: ActorCriticPolicy,
    network: Mlp,
    adam: "FlatAdam",
    rollout_buffer: RolloutBuffer,
    n_epochs: int,
    batch_size: int,
) -> float | None:
    losses = []
    regression = MlpRegression(network)
    for inputs, targets in _minibatches(policy, rollout_buffer, n_epochs, batch_size):
        loss = regression.loss(inputs, targets)
        if _is_broken(loss, th.linalg.vector_norm(regression.gradient).item()):
            break
        losses.append(loss)
        adam.step(regression.parameters, regression.gradient)
    if losses:
        with th.no_grad():
            for parameter, value in zip(network.parameters, unflatten(regression.parameters, network.parameters), strict=True):
                parameter.copy_(value)
        adam.write_back()
    return float(np.mean(losses)) if losses else None


@th.no_grad()
def _minibatches(
    policy: ActorCriticPolicy, rollout_buffer: RolloutBuffer, n_epochs: int, batch_size: int
) -> Iterator[tuple[th.Tensor, th.Tensor]]:
    """Inputs and returns: the minibatches that ``rollout_buffer.get`` would draw, with the observations flattened once."""
    arrays = [rollout_buffer.observations, rollout_buffer.returns]
    if not rollout_buffer.generator_ready:
        arrays = [rollout_buffer.swap_and_flatten(array) for array in arrays]
    observations, returns = (rollout_buffer.to_torch(array) for array in arrays)
    inputs, targets = features(policy, observations), returns.reshape(-1, 1)
    for _ in range(n_epochs):
        # The generator that the buffer draws from.
        order = th.as_tensor(np.random.permutation(len(inputs)), device=inputs.device)  # noqa: NPY002
        yield from zip(th.split(inputs[order], batch_size), th.split(targets[order], batch_size), strict=True)


def _same(parameters: Collection[th.nn.Parameter], others: Collection[th.nn.Parameter]) -> bool:
    return {id(parameter) for parameter in parameters} == {id(parameter) for parameter in others}


def _is_broken(loss: float, gradient_norm: float) -> bool:
    if math.isfinite(loss + gradient_norm):
        return False
    warnings.warn(
        f"The critic's fit stopped early: a minibatch has loss {loss:.3g} and gradient norm {gradient_norm:.3g}. "
        "Look for very large returns or observations (VecNormalize scales both), or lower learning_rate"
    )
    return True
