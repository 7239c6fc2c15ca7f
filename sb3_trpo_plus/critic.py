"""The value regression."""

import math
import warnings
from collections.abc import Collection, Iterator

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn import functional as F

from sb3_trpo_plus import networks
from sb3_trpo_plus.trust_region.flat import flatten, unflatten
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
    network = networks.plain_critic(policy)
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
    inputs, targets = networks.features(policy, observations), returns.reshape(-1, 1)
    for _ in range(n_epochs):
        # The generator that the buffer draws from.
        order = th.as_tensor(np.random.permutation(len(inputs)), device=inputs.device)  # noqa: NPY002
        yield from zip(th.split(inputs[order], batch_size), th.split(targets[order], batch_size), strict=True)


class FlatAdam:
    """
    The steps of a ``torch.optim.Adam``, on one flat vector instead of its parameters.

    :param optimizer: where the state is read from and written to
    :param parameters: of the flat vector, in its order
    """

    @classmethod
    def of(cls, optimizer: th.optim.Optimizer, parameters: list[th.nn.Parameter]) -> "FlatAdam | None":
        """
        :return: None where the optimiser is not an Adam of the usual kind, with all parameters at the same step
        """
        if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1 or "step" in optimizer.__dict__:
            return None
        group, states = optimizer.param_groups[0], [optimizer.state.get(parameter, {}) for parameter in parameters]
        special = any(group.get(option) for option in ("amsgrad", "maximize", "differentiable", "decoupled_weight_decay"))
        hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        steps = {float(state.get("step", 0.0)) for state in states}
        return None if special or hooked or len(steps) > 1 else cls(optimizer, parameters)

    def __init__(self, optimizer: th.optim.Adam, parameters: list[th.nn.Parameter]) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        states = [optimizer.state.get(parameter, {}) for parameter in parameters]
        zeros = [th.zeros_like(parameter) for parameter in parameters]
        moments = [
            flatten([state.get(name, zero) for state, zero in zip(states, zeros, strict=True)])
            for name in ("exp_avg", "exp_avg_sq")
        ]
        self._mean, self._square = moments
        self._n_steps = th.tensor(float(states[0].get("step", 0.0)), device=self._mean.device)
        group = optimizer.param_groups[0]
        self._lr, self._betas = float(group["lr"]), tuple(map(float, group["betas"]))
        self._weight_decay, self._eps = float(group["weight_decay"]), float(group["eps"])

    def step(self, vector: th.Tensor, gradient: th.Tensor) -> None:
        """
        :param vector: moved in place
        :param gradient: of the same shape
        """
        self._n_steps += 1
        # The kernel behind torch.optim.Adam(fused=True): that class around it takes four times as long as the kernel here.
        th._fused_adam_(
            [vector],
            [gradient],
            [self._mean],
            [self._square],
            [],
            [self._n_steps],
            lr=self._lr,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=self._weight_decay,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
        )

    def write_back(self) -> None:
        """Put the state into the optimiser, where it has its place for each parameter."""
        group = self._optimizer.param_groups[0]
        # Where Adam itself looks for it.
        n_steps = self._n_steps if group.get("fused") or group.get("capturable") else self._n_steps.cpu()
        pieces = (unflatten(vector, self._parameters) for vector in (self._mean, self._square))
        for parameter, mean, square in zip(self._parameters, *pieces, strict=True):
            self._optimizer.state[parameter] = {
                "step": n_steps.clone(), "exp_avg": mean.clone(), "exp_avg_sq": square.clone(),
            }  # fmt: skip


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
