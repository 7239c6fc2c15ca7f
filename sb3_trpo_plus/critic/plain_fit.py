"""Fit of a critic that is a plain MLP, on one flat vector and without autograd."""

import math
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo_plus.critic.flat_adam import FlatAdam
from sb3_trpo_plus.critic.outcome import NOT_USABLE, CriticFit, all_finite, broken, forget_gradients
from sb3_trpo_plus.policies.observations import parts_of, whole_of
from sb3_trpo_plus.policies.plain import features, is_plain_buffer, plain_critic
from sb3_trpo_plus.trust_region.flat import unflatten
from sb3_trpo_plus.trust_region.mlp import Mlp, MlpRegression


class PlainFit:
    """
    The fit of a plain MLP by Adam, in three parts: what it needs is copied when it is made, :meth:`run` computes with these
    copies alone, so that it can do so in another thread, and :meth:`write_back` changes the policy.

    :param policy: its critic is fitted, by the present state and learning rate of its optimiser
    :param network: the critic
    :param adam: the optimiser's state for it
    :param rollout_buffer: full, with returns
    :param n_epochs: passes over the rollout, each in an order drawn now from NumPy's global generator, as
        ``RolloutBuffer.get`` draws it
    :param batch_size: samples in a minibatch; the last one of a pass may be smaller
    """

    @classmethod
    def of(
        cls,
        policy: ActorCriticPolicy,
        rollout_buffer: RolloutBuffer,
        critic_parameters: Collection[th.nn.Parameter],
        n_epochs: int,
        batch_size: int,
    ) -> "PlainFit | None":
        """
        :param critic_parameters: those to be changed
        :return: None if they are not those of a plain MLP, the optimiser is not Adam, or the buffer is not SB3's
        """
        network = plain_critic(policy)
        if network is None or not _same(network.parameters, critic_parameters) or not is_plain_buffer(rollout_buffer):
            return None
        adam = FlatAdam.of(policy.optimizer, network.parameters)
        return None if adam is None else cls(policy, network, adam, rollout_buffer, n_epochs, batch_size)

    @th.no_grad()
    def __init__(
        self,
        policy: ActorCriticPolicy,
        network: Mlp,
        adam: FlatAdam,
        rollout_buffer: RolloutBuffer,
        n_epochs: int,
        batch_size: int,
    ) -> None:
        self._policy, self._network, self._adam, self._batch_size = policy, network, adam, batch_size
        self._regression = MlpRegression(network)

        def flat(array: npt.NDArray[Any]) -> th.Tensor:
            is_flat = rollout_buffer.generator_ready
            return rollout_buffer.to_torch(array if is_flat else rollout_buffer.swap_and_flatten(array))

        of_rollout = {name: flat(array) for name, array in parts_of(rollout_buffer.observations).items()}
        self._inputs = features(policy, whole_of(of_rollout))
        self._targets = flat(rollout_buffer.returns).reshape(-1, 1)
        self._orders = [np.random.permutation(len(self._inputs)) for _ in range(n_epochs)]  # noqa: NPY002
        self._last_gradient = self._regression.gradient
        self._fit = CriticFit(None)

    def run(self) -> None:
        """Take the steps, on copies. A minibatch whose loss or gradient is not finite ends them."""
        regression, losses, stopped = self._regression, [], None
        for inputs, targets in self._minibatches():
            loss = regression.loss(inputs, targets)
            stopped = broken(loss, th.linalg.vector_norm(regression.gradient).item())
            if stopped is not None:
                break
            losses.append(loss)
            self._adam.step(regression.parameters, regression.gradient)
        if not losses:
            self._fit = CriticFit(None, stopped)
            return
        self._last_gradient = regression.gradient.clone()
        mean_square = regression.loss(inputs, th.zeros_like(targets))
        usable = math.isfinite(mean_square) and all_finite(regression.parameters, *self._adam.state)
        self._fit = CriticFit(float(np.mean(losses)), stopped) if usable else CriticFit(None, NOT_USABLE)

    @th.no_grad()
    def write_back(self) -> CriticFit:
        """
        Change the policy's critic and the optimiser's state, unless no step was taken or the outcome is not finite.

        :return: the loss, and why the fit ended early if it did
        """
        forget_gradients(self._policy.optimizer, self._network.parameters)
        if self._fit.loss is not None:
            vectors = (self._regression.parameters, self._last_gradient)
            pieces = (unflatten(vector, self._network.parameters) for vector in vectors)
            for parameter, value, gradient in zip(self._network.parameters, *pieces, strict=True):
                parameter.copy_(value)
                # The last minibatch's gradient, as optimizer.step() would leave it.
                parameter.grad = None if self._fit.stopped else gradient.clone()
            self._adam.write_back()
        return self._fit

    @th.no_grad()
    def _minibatches(self) -> Iterator[tuple[th.Tensor, th.Tensor]]:
        """The minibatches of ``rollout_buffer.get``, as network inputs and returns; observations are flattened only once."""
        for drawn in self._orders:
            order = th.as_tensor(drawn, device=self._inputs.device)
            shuffled = (th.split(part[order], self._batch_size) for part in (self._inputs, self._targets))
            yield from zip(*shuffled, strict=True)


def _same(parameters: Collection[th.nn.Parameter], others: Collection[th.nn.Parameter]) -> bool:
    return {id(parameter) for parameter in parameters} == {id(parameter) for parameter in others}
