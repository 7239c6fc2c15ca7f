"""``collect_rollouts``, as SB3's on-policy algorithms have it, but faster for plain policies."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

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

from sb3_trpo_plus.critic.outcome import CriticFit
from sb3_trpo_plus.envs.vec.infos import Infos
from sb3_trpo_plus.policies.plain import is_plain_buffer
from sb3_trpo_plus.rollouts.acting import Acting, InOneBatch, StepByStep
from sb3_trpo_plus.rollouts.callbacks import Locals, runs_known_code_alone
from sb3_trpo_plus.rollouts.checks import Guard, NotFiniteError, ObservationNotFiniteError, refuse_not_finite
from sb3_trpo_plus.rollouts.failures import raise_naming
from sb3_trpo_plus.rollouts.fast_actor import Observations

Array = npt.NDArray[Any]


class FastRollouts(OnPolicyAlgorithm):
    """
    SB3's on-policy collection, except that for plain MLP policies on the CPU only the actions are computed at each step.

    Users see no difference: a seed gives the same actions, callbacks see the same ``locals``, the buffer has the same
    contents, and a callback's changes of the policy take effect at the next step.
    """

    # Set once the policy was found changed during a rollout without user callbacks, by a wrapper of the environment, say.
    _is_policy_watched = False
    # Whether others draw from torch's generator between the steps; None: not known yet.
    _others_draw: bool | None = None
    #: What becomes of observations and rewards that are not finite: "raise", "skip" or None, see ``TRPO``
    on_nonfinite: str | None = None
    # What of the last rollout was not finite, in a sentence, if that was no error.
    _not_finite: str | None = None
    # Whether learn() leaves the critic's fit to the time of the next rollout.
    _may_fit_beside = False
    # The fit of the critic to the last rollout, if it goes on beside the next one; to be asked for what it found.
    _fit_beside: Callable[[], CriticFit] | None = None

    @property
    def _acting_policy(self) -> ActorCriticPolicy:
        """``policy``, whose critic may not be fitted yet, on which actions don't depend."""
        kept: ActorCriticPolicy | None = vars(self).get("_kept_back")
        return self.policy if kept is None else kept

    def _fit_beside_rollout(self, fit: Callable[[], CriticFit]) -> None:
        """
        Let a fit of the critic go on beside the next rollout. Whoever asks for ``policy`` gets it once the fit is done.

        :param fit: waits for the end of the fit, lets it take effect, and tells of it
        """
        self._fit_beside, self._kept_back = fit, vars(self).pop("policy")

    if not TYPE_CHECKING:  # for which no attribute would be missing

        def __getattr__(self, name: str) -> Any:
            if name == "policy" and "_kept_back" in vars(self):
                self._settle_critic()
                return self.policy
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _settle_critic(self) -> None:
        """Wait for a fit of the critic that goes on beside the rollout, and let its outcome take effect."""
        fit, self._fit_beside = self._fit_beside, None
        if fit is not None:
            vars(self).setdefault("policy", vars(self).pop("_kept_back"))
            self._tell_of_fit(fit())

    def _tell_of_fit(self, fit: CriticFit) -> None:
        """Log the outcome of a fit of the critic."""
        raise NotImplementedError

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Fill the buffer with experience of the current policy, as ``OnPolicyAlgorithm.collect_rollouts`` does.

        :param env: the environments
        :param callback: called after each step, and at the start and the end of the rollout
        :param rollout_buffer: to be filled
        :param n_rollout_steps: steps of each environment
        :return: False if the callback ended the training before the rollout was complete
        :raises NotFiniteError: an observation or an action is NaN or infinite; the environments are not stepped with it
        """
        guard, self._not_finite = Guard(env), None
        try:
            return self._collect(env, callback, rollout_buffer, n_rollout_steps, guard)
        except ObservationNotFiniteError as error:
            # So that the next learn() begins with a reset.
            self._last_obs = None
            if self.on_nonfinite != "skip":
                raise
            self._not_finite = str(error)
        except Exception as error:
            raise_naming(error, env, f"in step {rollout_buffer.pos + 1} of the rollout", self._last_obs)
        guard.keep()
        self._last_obs = cast(Observations, env.reset())
        guard.look_at_reset()
        # Else a training whose environments have nothing else to give would not end.
        refuse_not_finite(self._last_obs, "after a reset")
        self._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        callback.on_rollout_end()
        return True

    def _collect(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int, guard: Guard
    ) -> bool:
        """:raises ObservationNotFiniteError: the rollout ends before its time"""
        assert self._last_obs is not None, "No previous observation was provided"
        gamma = self._present_gamma()
        watches = self._is_policy_watched or not runs_known_code_alone(callback)
        if watches:
            self._settle_critic()
        self._acting_policy.set_training_mode(False)
        n_steps = 0
        rollout_buffer.reset()
        if callable(self.gamma):
            rollout_buffer.gamma = gamma
        if self.use_sde:
            self._acting_policy.reset_noise(env.num_envs)

        callback.on_rollout_start()

        acting: Acting = InOneBatch.of(self, rollout_buffer, gamma, n_rollout_steps, env.num_envs, watches) or StepByStep(
            self, rollout_buffer, gamma
        )
        shown = Locals.shared_by(callback)
        given = {"env": env, "callback": callback, "rollout_buffer": rollout_buffer, "n_rollout_steps": n_rollout_steps}
        shown.update({"self": self, **given})
        try:
            while n_steps < n_rollout_steps:
                if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                    self._acting_policy.reset_noise(env.num_envs)
                    acting.noise_was_reset()

                actions = acting.act(self._last_obs)
                clipped_actions = within_bounds(self._acting_policy, actions)

                guard.keep()
                new_obs, rewards, dones, infos = env.step(clipped_actions)

                self.num_timesteps += env.num_envs
                self._look(guard, rewards, dones, n_steps + 1)

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
        if acting.was_policy_changed():
            self._is_policy_watched = True
            warnings.warn(
                "The policy was changed during the rollout, and not by a callback (by an environment?): the former one acted "
                "to the rollout's end. In the next rollouts such a change takes effect at the next step"
            )

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

    def _look(self, guard: Guard, rewards: Array, dones: Array, step: int) -> None:
        found = guard.look(rewards, dones, step)
        if found is None:
            return
        if self.on_nonfinite == "raise":
            self._last_obs = None
            raise NotFiniteError(found)
        self._not_finite = self._not_finite or found

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: Array | None = None) -> None:
        """As in SB3, without a look at the infos of environments that have nothing to tell."""
        if isinstance(infos, Infos):
            indices = list(infos.told)
            infos, dones = [infos[index] for index in indices], None if dones is None else dones[indices]
        super()._update_info_buffer(infos, dones)

    def _present_gamma(self) -> float:
        """The discount factor of the next rollout."""
        return self.gamma

    def _excluded_save_params(self) -> list[str]:
        of_rollouts = ["_kept_back", "_fit_beside", "_may_fit_beside", "_is_policy_watched", "_others_draw", "_not_finite"]
        return [*super()._excluded_save_params(), *of_rollouts]


def within_bounds(policy: ActorCriticPolicy, actions: Array) -> Array:
    """
    The actions to pass to ``env.step``.

    :param policy: the one that sampled the actions
    :param actions: as sampled, shape (environments, ...)
    :return: for a Box, unscaled from (-1, 1) if the policy squashes its output, else clipped; for other spaces, unchanged
    """
    if not isinstance(policy.action_space, spaces.Box):
        return actions
    if policy.squash_output:
        return policy.unscale_action(actions)
    return actions.clip(policy.action_space.low, policy.action_space.high)


def _estimate_advantages(buffer: RolloutBuffer, last_values: Array, dones: Array) -> None:
    """
    Fill in ``advantages`` (GAE) and ``returns``, as ``RolloutBuffer.compute_returns_and_advantage`` does.

    :param buffer: full and plain
    :param last_values: values of the observations after the last step, shape (environments,)
    :param dones: whether the last step ended an episode, shape (environments,)
    """
    goes_on = 1 - np.concatenate([buffer.episode_starts[1:], dones[None].astype(np.float32)])
    next_values = np.concatenate([buffer.values[1:], last_values[None]])
    errors = buffer.rewards + buffer.gamma * next_values * goes_on - buffer.values
    decays = buffer.gamma * buffer.gae_lambda * goes_on
    # In double precision, whose rounding does not grow with the length of the rollout.
    later = np.zeros(buffer.n_envs)
    # What is not finite is told by those who look at the rollout.
    with np.errstate(over="ignore", invalid="ignore"):
        for step in reversed(range(buffer.buffer_size)):
            later *= decays[step]
            later += errors[step]
            buffer.advantages[step] = later
    buffer.returns = buffer.advantages + buffer.values
