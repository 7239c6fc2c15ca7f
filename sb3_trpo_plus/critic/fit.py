"""Fit of the critic: minibatch steps on the mean squared error between values and returns."""

import copy
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn import functional as F

from sb3_trpo_plus.critic.flat_adam import FlatAdam
from sb3_trpo_plus.policies.observations import parts_of, whole_of
from sb3_trpo_plus.policies.plain import features, is_plain_buffer, plain_critic
from sb3_trpo_plus.trust_region.flat import unflatten
from sb3_trpo_plus.trust_region.mlp import Mlp, MlpRegression

NOT_USABLE = "the critic was not finite in the end, and is as it was before. Lower learning_rate"


@dataclass(frozen=True)
class CriticFit:
    """
    The outcome of :func:`fit_critic`.

    :param loss: mean of the minibatches' mean squared errors; None if no step was taken
    :param stopped: why the fit ended early, in words; None if it did not
    """

    loss: float | None
    stopped: str | None = None


def fit_critic(
    policy: ActorCriticPolicy,
    rollout_buffer: RolloutBuffer,
    actor_parameters: Collection[th.nn.Parameter],
    n_epochs: int,
    batch_size: int,
) -> CriticFit:
    """
    Regress the values on the returns by minibatch steps of the policy's optimiser on the mean squared error.

    Parameters that the critic shares with the actor are left as they are. A minibatch whose loss or gradient is not finite
    ends the fit, before it changes the parameters or the optimiser's state. Where they, or the values, are not finite in the
    end, the whole fit is undone.

    A plain MLP whose optimiser is Adam is fitted on one flat vector, without autograd; the optimiser's state is copied from
    and back to ``optimizer.state``.

    :param policy: its ``optimizer`` takes the steps, at its present learning rate
    :param rollout_buffer: full, with returns
    :param actor_parameters: parameters not to be changed
    :param n_epochs: passes over the rollout
    :param batch_size: samples in a minibatch; the last one of a pass may be smaller
    :return: the loss, and why the fit ended early if it did
    """
    actor = {id(parameter) for parameter in actor_parameters}
    critic_parameters = [p for p in policy.parameters() if p.requires_grad and id(p) not in actor]
    if not critic_parameters:
        return CriticFit(None)
    network = plain_critic(policy)
    if network is not None and _same(network.parameters, critic_parameters) and is_plain_buffer(rollout_buffer):
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
) -> CriticFit:
    losses, stopped = [], None
    optimizer = policy.optimizer
    before = [parameter.detach().clone() for parameter in critic_parameters], copy.deepcopy(optimizer.state_dict())
    for rollout in (minibatch for _ in range(n_epochs) for minibatch in rollout_buffer.get(batch_size)):
        loss = F.mse_loss(rollout.returns, policy.predict_values(rollout.observations).flatten())
        if not loss.requires_grad:
            break
        _forget_gradients(policy, critic_parameters)
        # Not autograd.grad, which would not call post-accumulate-grad hooks.
        th.autograd.backward(loss, inputs=critic_parameters)
        norm = th.nn.utils.get_total_norm([p.grad for p in critic_parameters if p.grad is not None])
        stopped = _broken(loss.item(), norm.item())
        if stopped is not None:
            _forget_gradients(policy, critic_parameters)
            break
        losses.append(loss.item())
        optimizer.step()
    if not losses:
        return CriticFit(None, stopped)
    # Evaluation mode: running statistics of a normalisation layer stay as they are.
    policy.set_training_mode(False)
    with th.no_grad():
        state = [part for p in critic_parameters for part in optimizer.state.get(p, {}).values() if th.is_tensor(part)]
        if not _all_finite(*critic_parameters, *state, policy.predict_values(rollout.observations)):
            for parameter, value in zip(critic_parameters, before[0], strict=True):
                parameter.copy_(value)
            optimizer.load_state_dict(before[1])
            _forget_gradients(policy, critic_parameters)
            return CriticFit(None, NOT_USABLE)
    return CriticFit(float(np.mean(losses)), stopped)


def _forget_gradients(policy: ActorCriticPolicy, critic_parameters: Iterable[th.nn.Parameter]) -> None:
    policy.optimizer.zero_grad()
    for parameter in critic_parameters:
        # The optimiser may not have all of them.
        parameter.grad = None


def _fit_mlp(
    policy: ActorCriticPolicy,
    network: Mlp,
    adam: FlatAdam,
    rollout_buffer: RolloutBuffer,
    n_epochs: int,
    batch_size: int,
) -> CriticFit:
    losses, stopped = [], None
    _forget_gradients(policy, network.parameters)
    regression = MlpRegression(network)
    for inputs, targets in _minibatches(policy, rollout_buffer, n_epochs, batch_size):
        loss = regression.loss(inputs, targets)
        stopped = _broken(loss, th.linalg.vector_norm(regression.gradient).item())
        if stopped is not None:
            break
        losses.append(loss)
        adam.step(regression.parameters, regression.gradient)
    if not losses:
        return CriticFit(None, stopped)
    last_gradient = regression.gradient.clone()
    mean_square = regression.loss(inputs, th.zeros_like(targets))
    if not (math.isfinite(mean_square) and _all_finite(regression.parameters, *adam.state)):
        return CriticFit(None, NOT_USABLE)
    with th.no_grad():
        pieces = (unflatten(vector, network.parameters) for vector in (regression.parameters, last_gradient))
        for parameter, value, gradient in zip(network.parameters, *pieces, strict=True):
            parameter.copy_(value)
            # The last minibatch's gradient, as optimizer.step() would leave it.
            parameter.grad = None if stopped else gradient.clone()
    adam.write_back()
    return CriticFit(float(np.mean(losses)), stopped)


@th.no_grad()
def _minibatches(
    policy: ActorCriticPolicy, rollout_buffer: RolloutBuffer, n_epochs: int, batch_size: int
) -> Iterator[tuple[th.Tensor, th.Tensor]]:
    """The minibatches of ``rollout_buffer.get``, as network inputs and returns; observations are flattened only once."""

    def flat(array: npt.NDArray[Any]) -> th.Tensor:
        return rollout_buffer.to_torch(array if rollout_buffer.generator_ready else rollout_buffer.swap_and_flatten(array))

    of_rollout = {name: flat(array) for name, array in parts_of(rollout_buffer.observations).items()}
    inputs = features(policy, whole_of(of_rollout))
    targets = flat(rollout_buffer.returns).reshape(-1, 1)
    for _ in range(n_epochs):
        # NumPy's global generator, as RolloutBuffer.get uses.
        order = th.as_tensor(np.random.permutation(len(inputs)), device=inputs.device)  # noqa: NPY002
        yield from zip(th.split(inputs[order], batch_size), th.split(targets[order], batch_size), strict=True)


def _all_finite(*tensors: th.Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _same(parameters: Collection[th.nn.Parameter], others: Collection[th.nn.Parameter]) -> bool:
    return {id(parameter) for parameter in parameters} == {id(parameter) for parameter in others}


def _broken(loss: float, gradient_norm: float) -> str | None:
    """A message if the loss or the gradient norm of a minibatch is not finite; None if both are."""
    if math.isfinite(loss + gradient_norm):
        return None
    return (
        f"a minibatch has loss {loss:.3g} and gradient norm {gradient_norm:.3g}. "
        "Look for very large returns or observations (VecNormalize scales both), or lower learning_rate"
    )
