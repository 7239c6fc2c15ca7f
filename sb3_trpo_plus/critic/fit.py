"""Fit of the critic: minibatch steps on the mean squared error between values and returns."""

import copy
from collections.abc import Collection

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn import functional as F

from sb3_trpo_plus.critic.outcome import NOT_USABLE, CriticFit, all_finite, broken, forget_gradients
from sb3_trpo_plus.critic.plain_fit import PlainFit


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
    critic = critic_parameters(policy, actor_parameters)
    if not critic:
        return CriticFit(None)
    plain = PlainFit.of(policy, rollout_buffer, critic, n_epochs, batch_size)
    if plain is not None:
        plain.run()
        return plain.write_back()
    return _fit_any(policy, critic, rollout_buffer, n_epochs, batch_size)


def critic_parameters(policy: ActorCriticPolicy, actor_parameters: Collection[th.nn.Parameter]) -> list[th.nn.Parameter]:
    """The trainable parameters of a policy apart from its actor's."""
    actor = {id(parameter) for parameter in actor_parameters}
    return [p for p in policy.parameters() if p.requires_grad and id(p) not in actor]


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
        forget_gradients(optimizer, critic_parameters)
        # Not autograd.grad, which would not call post-accumulate-grad hooks.
        th.autograd.backward(loss, inputs=critic_parameters)
        norm = th.nn.utils.get_total_norm([p.grad for p in critic_parameters if p.grad is not None])
        stopped = broken(loss.item(), norm.item())
        if stopped is not None:
            forget_gradients(optimizer, critic_parameters)
            break
        losses.append(loss.item())
        optimizer.step()
    if not losses:
        return CriticFit(None, stopped)
    # Evaluation mode: running statistics of a normalisation layer stay as they are.
    policy.set_training_mode(False)
    with th.no_grad():
        state = [part for p in critic_parameters for part in optimizer.state.get(p, {}).values() if th.is_tensor(part)]
        if not all_finite(*critic_parameters, *state, policy.predict_values(rollout.observations)):
            for parameter, value in zip(critic_parameters, before[0], strict=True):
                parameter.copy_(value)
            optimizer.load_state_dict(before[1])
            forget_gradients(optimizer, critic_parameters)
            return CriticFit(None, NOT_USABLE)
    return CriticFit(float(np.mean(losses)), stopped)
