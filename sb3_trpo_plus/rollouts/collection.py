"""Collection of rollouts at close to the environment's own speed."""

from itertools import accumulate
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo_plus.rollouts.fast_actor import FastActor
from sb3_trpo_plus.rollouts.promise import Promise

Array = npt.NDArray[Any]


class FastRollouts(OnPolicyAlgorithm):
    """
    SB3's on-policy collection, which for plain MLP policies on the CPU does per step only what the next action needs.

    Values, log-probabilities and the values of truncated episodes' last observations follow in one batch each after the
    rollout, since the policy stays the same until then. Any other policy, buffer or device takes SB3's own loop.
    """

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Fill the buffer with experience of the current policy, as ``OnPolicyAlgorithm.collect_rollouts`` does.

        Callbacks see the same local variables; ``values`` and ``log_probs`` are computed if they are looked at.

        :param env: the environments
        :param callback: called at each step, and at the start and the end
        :param rollout_buffer: to be filled
        :param n_rollout_steps: steps of each environment
        :return: False if the callback ended the training before the rollout was complete
        """
        assert self._last_obs is not None, "No previous observation was provided"
        actor = FastActor.of(self.policy)
        if actor is None or type(rollout_buffer) is not RolloutBuffer or n_rollout_steps != rollout_buffer.buffer_size:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

        self.policy.set_training_mode(False)
        n_steps = 0
        rollout_buffer.reset()
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)

        callback.on_rollout_start()

        actor.begin(n_rollout_steps, env.num_envs)
        batch = _Batch(self.policy, rollout_buffer)
        while n_steps < n_rollout_steps:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
                actor.read_exploration()

            observations = cast(Array, self._last_obs)
            actions = actor.act(observations, n_steps)
            obs_tensor, values, log_probs = batch.promise(observations, actions)

            clipped_actions = within_bounds(self.policy, actions)

            new_obs, rewards, dones, infos = env.step(clipped_actions)

            self.num_timesteps += env.num_envs

            callback.update_locals(locals())
            if not callback.on_step():
                batch.compute()
                return False

            self._update_info_buffer(infos, dones)
            n_steps += 1
            batch.add(observations, actions, rewards, cast(Array, self._last_episode_starts), dones, infos)
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones

        batch.compute()
        with th.no_grad():
            values = self.policy.predict_values(obs_as_tensor(new_obs, self.device))  # type: ignore[arg-type]
        _estimate_advantages(rollout_buffer, values.numpy().flatten(), dones)

        callback.update_locals(locals())

        callback.on_rollout_end()

        return True


class _Batch:
    """
    What of a rollout can wait for its end.

    :param policy: plain, as it is during the whole rollout
    :param buffer: to be filled
    """

    def __init__(self, policy: ActorCriticPolicy, buffer: RolloutBuffer) -> None:
        self.policy, self.buffer = policy, buffer
        self.actions: list[Array] = []
        self.truncations: list[tuple[int, int, Array]] = []
        self.values = self.log_probs = th.empty(0)

    def promise(self, observations: Array, actions: Array) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """The tensors of the observations, values and log-probabilities of the next step to be added."""
        step = len(self.actions)
        promises = (
            Promise(th.as_tensor, observations),
            Promise(self.values_of, step, observations),
            Promise(self.log_probs_of, step, observations, actions),
        )
        return cast(tuple[th.Tensor, th.Tensor, th.Tensor], promises)

    def values_of(self, step: int, observations: Array) -> th.Tensor:
        """Shape (environments, 1): of a step of the batch once that is computed, until then computed for itself."""
        if step < len(self.values):
            return self.values[step]
        with th.no_grad():
            return self.policy.predict_values(th.as_tensor(observations))

    def log_probs_of(self, step: int, observations: Array, actions: Array) -> th.Tensor:
        """Shape (environments,), as :meth:`values_of`."""
        if step < len(self.log_probs):
            return self.log_probs[step]
        with th.no_grad():
            distribution = self.policy.get_distribution(th.as_tensor(observations))
            return distribution.log_prob(self._as_policy_makes_them(actions))

    def add(
        self, observations: Array, actions: Array, rewards: Array, starts: Array, dones: Array, infos: list[dict[str, Any]]
    ) -> None:
        """A step of all environments."""
        buffer = self.buffer
        step = buffer.pos
        buffer.observations[step] = observations.reshape(buffer.observations.shape[1:])
        buffer.actions[step] = actions.reshape(buffer.actions.shape[1:])
        buffer.rewards[step] = rewards
        buffer.episode_starts[step] = starts
        buffer.pos = step + 1
        self.actions.append(actions)
        for index, done in enumerate(dones.tolist()):
            if done and infos[index].get("TimeLimit.truncated", False):
                last = infos[index].get("terminal_observation")
                if last is not None:
                    self.truncations.append((step, index, np.array(last)))

    @th.no_grad()
    def compute(self) -> None:
        """Values, log-probabilities, and what truncated episodes would have gone on to earn, into the buffer."""
        buffer, n_steps = self.buffer, len(self.actions)
        buffer.full = n_steps == buffer.buffer_size
        if n_steps == 0:
            return
        observations = th.as_tensor(buffer.observations[:n_steps].reshape(-1, *buffer.obs_shape))
        actions = self._as_policy_makes_them(np.concatenate(self.actions))
        self.values = self.policy.predict_values(observations).view(n_steps, -1, 1)
        self.log_probs = self.policy.get_distribution(observations).log_prob(actions).view(n_steps, -1)
        buffer.values[:n_steps] = self.values.numpy()[..., 0]
        buffer.log_probs[:n_steps] = self.log_probs.numpy()
        if self.truncations:
            steps, indices, last = zip(*self.truncations, strict=True)
            values = self.policy.predict_values(self.policy.obs_to_tensor(np.stack(last))[0])
            buffer.rewards[steps, indices] += buffer.gamma * values.numpy().flatten()

    def _as_policy_makes_them(self, actions: Array) -> th.Tensor:
        if isinstance(self.policy.action_space, spaces.Discrete):
            return th.as_tensor(actions.reshape(-1))
        return th.as_tensor(actions.reshape(len(actions), -1))


def within_bounds(policy: ActorCriticPolicy, actions: Array) -> Array:
    """
    Actions as the environments take them.

    :param policy: whose action space it is
    :param actions: as the policy makes them, shape (environments, ...)
    :return: those of a Box scaled from (-1, 1), where the policy squashes them, or clipped; all others as they are
    """
    if not isinstance(policy.action_space, spaces.Box):
        return actions
    if policy.squash_output:
        return policy.unscale_action(actions)
    return actions.clip(policy.action_space.low, policy.action_space.high)


def _estimate_advantages(buffer: RolloutBuffer, last_values: Array, dones: Array) -> None:
    """
    Generalised advantages and the returns that follow from them, as ``RolloutBuffer.compute_returns_and_advantage``.

    :param last_values: of the observations after the last step, shape (environments,)
    :param dones: whether the last step ended an episode, shape (environments,)
    """
    goes_on = 1 - np.concatenate([buffer.episode_starts[1:], dones[None].astype(np.float32)])
    next_values = np.concatenate([buffer.values[1:], last_values[None]])
    errors = buffer.rewards + buffer.gamma * next_values * goes_on - buffer.values
    decays = buffer.gamma * buffer.gae_lambda * goes_on
    for index in range(buffer.n_envs):
        # Numbers of Python: one NumPy operation a step costs more than all its environments here.
        backwards = zip(errors[::-1, index].tolist(), decays[::-1, index].tolist(), strict=True)
        advantages = accumulate(backwards, lambda later, now: now[0] + now[1] * later, initial=0.0)
        buffer.advantages[::-1, index] = list(advantages)[1:]
    buffer.returns = buffer.advantages + buffer.values
