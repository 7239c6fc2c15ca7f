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

from sb3_trpo_plus.policies.plain import is_plain_buffer
from sb3_trpo_plus.rollouts.acting import Acting, InOneBatch, StepByStep
from sb3_trpo_plus.rollouts.callbacks import Locals, runs_known_code_alone
from sb3_trpo_plus.rollouts.fast_actor import Observations

Array = npt.NDArray[Any]


class FastRollouts(OnPolicyAlgorithm):
    """
    SB3's on-policy collection, which for plain MLP policies on the CPU does per step only what the next action needs.

    What users can see of it is the same: the actions drawn from a seed, the local variables of callbacks, the buffer's
    contents, and that a policy which a callback changes acts from the next step on.
    """

    # Whether somebody has been found to change the policy where nobody was expected to.
    _is_policy_watched = False

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Fill the buffer with experience of the current policy, as ``OnPolicyAlgorithm.collect_rollouts`` does.

        :param env: the environments
        :param callback: called at each step, and at the start and the end
        :param rollout_buffer: to be filled
        :param n_rollout_steps: steps of each environment
        :return: False if the callback ended the training before the rollout was complete
        :raises NotFiniteError: an observation, or what the policy makes of it, is NaN or infinite; no action is taken on it
        """
        assert self._last_obs is not None, "No previous observation was provided"
        gamma = self._present_gamma()
        self.policy.set_training_mode(False)
        n_steps = 0
        rollout_buffer.reset()
        if callable(self.gamma):
            rollout_buffer.gamma = gamma
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)

        callback.on_rollout_start()

        watches = self._is_policy_watched or not runs_known_code_alone(callback)
        acting: Acting = InOneBatch.of(self, rollout_buffer, gamma, n_rollout_steps, env.num_envs, watches) or StepByStep(
            self, rollout_buffer, gamma
        )
        shown = Locals.shared_by(callback)
        given = {"env": env, "callback": callback, "rollout_buffer": rollout_buffer, "n_rollout_steps": n_rollout_steps}
        shown.update({"self": self, **given})
        try:
            while n_steps < n_rollout_steps:
                if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                    self.policy.reset_noise(env.num_envs)
                    acting.noise_was_reset()

                actions = acting.act(self._last_obs)
                clipped_actions = within_bounds(self.policy, actions)

                new_obs, rewards, dones, infos = env.step(clipped_actions)

                self.num_timesteps += env.num_envs

                shown.show(
                    acting,
                    n_steps=n_steps,
                    actions=actions,
                    clipped_actions=clipped_actions,
                    new_obs=new_obs,
                    rewards=rewards,
                    dones=dones,
                    infos=infos,
                )
                callback.update_locals(shown)
                if not callback.on_step():
                    shown.settle()
                    return False

                self._update_info_buffer(infos, dones)
                n_steps += 1
                acting = acting.record(rewards, cast(Array, self._last_episode_starts), dones, infos)
                self._last_obs = cast(Observations, new_obs)
                self._last_episode_starts = dones
        finally:
            acting.finish()
        shown.settle()
        self._is_policy_watched |= acting.was_policy_changed()

        with th.no_grad():
            values = self.policy.predict_values(obs_as_tensor(cast(Observations, new_obs), self.device))
        if is_plain_buffer(rollout_buffer):
            _estimate_advantages(rollout_buffer, values.cpu().numpy().flatten(), dones)
        else:
            rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)

        shown.update(n_steps=n_steps, values=values)
        callback.update_locals(shown)

        callback.on_rollout_end()

        return True

    def _present_gamma(self) -> float:
        """The discount factor of the next rollout."""
        return self.gamma

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_is_policy_watched"]


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
