"""How a rollout is collected: everything at each step, as SB3 does, or values and log-probabilities later, in one batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo_plus.policies.distributions import refused_by_torch
from sb3_trpo_plus.policies.observations import parts_of, stack, whole_of
from sb3_trpo_plus.policies.plain import is_plain_buffer
from sb3_trpo_plus.rollouts.checks import first_broken_parameter, refuse_last, refuse_to_act
from sb3_trpo_plus.rollouts.fast_actor import FastActor, Observations
from sb3_trpo_plus.rollouts.frozen import FrozenPolicy
from sb3_trpo_plus.rollouts.lazy import filled_when_read
from sb3_trpo_plus.rollouts.noise import noise_width, standard_noise

if TYPE_CHECKING:
    from sb3_trpo_plus.rollouts.collection import FastRollouts

Array = npt.NDArray[Any]
# Limit on the random numbers drawn ahead, where no other code can draw from the generator between the steps.
MOST_NOISE = 2**20
# Parameters above which comparing them after each step takes longer than SB3's way.
MOST_WATCHED = 2**18


class Acting(Protocol):
    """
    A way of collecting a rollout. ``obs_tensor``, ``values`` and ``log_probs`` belong to the last call of :meth:`act`, and
    equal the local variables of these names in ``OnPolicyAlgorithm.collect_rollouts``.
    """

    @property
    def obs_tensor(self) -> PyTorchObs: ...
    @property
    def values(self) -> th.Tensor: ...
    @property
    def log_probs(self) -> th.Tensor: ...

    def act(self, observations: Observations) -> Array:
        """
        Sample the actions of one step.

        :param observations: of all environments
        :return: the actions before clipping or unscaling, shape (environments, ...)
        :raises NotFiniteError: an action or an observation is NaN or infinite
        """

    def noise_was_reset(self) -> None:
        """To be called after ``policy.reset_noise``: gSDE's exploration matrices are new."""

    def record(self, rewards: Array, starts: Array, dones: Array, infos: list[dict[str, Any]]) -> Acting:
        """
        Add the step to the buffer. Observations and actions are those of the last :meth:`act`.

        :param rewards: shape (environments,); may be changed in place, to bootstrap truncated episodes
        :param starts: whether the observations are the first of an episode, shape (environments,)
        :param dones: whether the step ended an episode, shape (environments,)
        :param infos: what ``env.step`` returned, one for each environment
        :return: the object that collects the following steps: this one, or another if a callback has changed the policy
        """

    def finish(self) -> None:
        """Write what was put off into the buffer. To be called once, however the rollout ends."""

    def was_policy_changed(self) -> bool:
        """Whether the model's policy no longer is, or acts as, the copy that samples the actions."""


class StepByStep:
    """
    Calls the policy's ``forward`` and the buffer's ``add`` at each step, as SB3 does: for any policy and buffer.

    :param model: its ``policy`` acts
    :param buffer: to be filled
    :param gamma: discount factor, of the bootstrap value of truncated episodes
    """

    def __init__(self, model: FastRollouts, buffer: RolloutBuffer, gamma: float) -> None:
        self.model, self.buffer, self.gamma = model, buffer, gamma

    @property
    def policy(self) -> ActorCriticPolicy:
        """Looked up at each step, since a callback may have replaced ``model.policy``."""
        return self.model.policy

    @th.no_grad()
    def act(self, observations: Observations) -> Array:
        self.observations = observations
        self.obs_tensor = obs_as_tensor(observations, self.policy.device)
        if not _are_finite(*parts_of(observations).values()):
            refuse_to_act(observations, self.policy, _when(self.buffer))
        try:
            actions, self.values, self.log_probs = self.policy(self.obs_tensor)
        except (ValueError, RuntimeError) as error:
            # Torch raises these for NaN logits or means; its message prints the whole batch.
            if not (refused_by_torch(error) or first_broken_parameter(self.policy)):
                raise
            refuse_to_act(observations, self.policy, _when(self.buffer))
        made: Array = actions.cpu().numpy()
        if not (np.isfinite(made).all() and self.log_probs.isfinite().all()):
            refuse_to_act(observations, self.policy, _when(self.buffer))
        self.actions = made
        return made

    def noise_was_reset(self) -> None:
        pass

    def record(self, rewards: Array, starts: Array, dones: Array, infos: list[dict[str, Any]]) -> Acting:
        actions = self.actions.reshape(-1, 1) if isinstance(self.policy.action_space, spaces.Discrete) else self.actions
        for index, last in _truncated(dones, infos, self.policy, self.buffer.pos + 1):
            with th.no_grad():
                value = self.policy.predict_values(self.policy.obs_to_tensor(last)[0])[0]
            rewards[index] += self.gamma * value.item()
        self.buffer.add(self.observations, actions, rewards, starts, self.values, self.log_probs)  # type: ignore[arg-type]
        return self

    def finish(self) -> None:
        pass

    def was_policy_changed(self) -> bool:
        return False


class InOneBatch:
    """
    For plain policies on the CPU: computes only the actions at each step.

    Values, log-probabilities and the bootstrap values of truncated episodes are computed in one batch each, when the rollout
    is complete or when they are read. They are those of the policy that acted, even if it has been changed since.

    :param model: its ``policy`` was copied to ``frozen``
    :param frozen: copy of the policy, from which actions are sampled
    :param buffer: plain; filled from ``buffer.pos`` to its end
    :param gamma: discount factor
    :param n_envs: number of environments
    :param watches: whether user code, such as a callback, runs between the steps. If so, the noise is drawn step by step, as
        in SB3; the policy is compared with its copy after each step, and changes take effect at the next one; and the buffer
        and the policy's distribution are brought up to date when they are read
    """

    @classmethod
    def of(
        cls, model: FastRollouts, buffer: RolloutBuffer, gamma: float, n_steps: int, n_envs: int, watches: bool
    ) -> InOneBatch | None:
        """:return: None if the policy or the buffer is not plain, the rollout does not fill the buffer, or it does not pay"""
        if not is_plain_buffer(buffer) or n_steps != buffer.buffer_size:
            return None
        frozen = FrozenPolicy.of(model._acting_policy)
        if frozen is not None and watches and frozen.n_parameters > MOST_WATCHED:
            return None
        return None if frozen is None else cls(model, frozen, buffer, gamma, n_envs, watches)

    def __init__(
        self,
        model: FastRollouts,
        frozen: FrozenPolicy,
        buffer: RolloutBuffer,
        gamma: float,
        n_envs: int,
        watches: bool,
    ) -> None:
        self.model, self.frozen, self.policy = model, frozen, frozen.policy
        self.buffer, self.gamma = buffer, gamma
        self.n_envs, self.watches = n_envs, watches
        self.actor = FastActor(frozen, n_envs)
        self.noise: list[Array] = []
        self.generator: th.Tensor | None = None
        self.n_complete = buffer.pos
        self.acted: list[Array] = []
        self.truncations: list[tuple[int, int, Any]] = []
        self.looked_at: list[tuple[str, int, th.Tensor]] = []
        self.is_shown = False
        self._values: th.Tensor | None = None
        self._log_probs: th.Tensor | None = None
        self.take_back: list[Callable[[], None]] = []
        # Whether it is fitted beside this rollout, and not known yet.
        self.lacks_critic = model._fit_beside is not None
        if watches:
            self.take_back = [
                filled_when_read(buffer, ("values", "log_probs"), self.complete),
                filled_when_read(
                    self.policy.action_dist, ("distribution",), self._show_distribution, self._distribution_was_written
                ),
            ]

    def act(self, observations: Observations) -> Array:
        self.observations = observations
        self._values = self._log_probs = None
        self.is_shown = False
        self.actions = self.actor.act(observations, self._next_noise())
        inputs, outputs = self.actor.inputs, self.actor.outputs
        # The sum of finite numbers can overflow, so its not being finite proves nothing yet.
        total = np.add.reduce(inputs, axis=None) + np.add.reduce(outputs, axis=None)
        if not (math.isfinite(total) or _are_finite(inputs, outputs)):
            self.is_shown = True
            refuse_to_act(observations, self.policy, _when(self.buffer))
        return self.actions

    @property
    def obs_tensor(self) -> PyTorchObs:
        return obs_as_tensor(self.observations, self.policy.device)

    @property
    def values(self) -> th.Tensor:
        if self._values is None:
            self._values = self._with_critic().values(self.obs_tensor)
        return self._values

    @property
    def log_probs(self) -> th.Tensor:
        if self._log_probs is None:
            with th.no_grad():
                distribution = self.frozen.distribution(self.obs_tensor)
                self._log_probs = distribution.log_prob(self._as_policy_makes_them(self.actions))
        return self._log_probs

    def noise_was_reset(self) -> None:
        self.actor.read_exploration()

    def record(self, rewards: Array, starts: Array, dones: Array, infos: list[dict[str, Any]]) -> Acting:
        if self.watches:
            if self.was_policy_changed():
                return self._hand_over(rewards, starts, dones, infos)
            self.actor.read_exploration()
            # A callback that has read these tensors may have changed them in place: SB3 would store them as they are now.
            for name, tensor in (("values", self._values), ("log_probs", self._log_probs)):
                if tensor is not None:
                    self.looked_at.append((name, self.buffer.pos, tensor))
        buffer, step = self.buffer, self.buffer.pos
        if True in dones.tolist():
            self._bootstrap(rewards, dones, infos)
        if isinstance(buffer.observations, dict):
            for name, held in buffer.observations.items():
                held[step] = self.observations[name].reshape(held.shape[1:])
        else:
            buffer.observations[step] = self.observations.reshape(buffer.observations.shape[1:])  # type: ignore[union-attr]
        buffer.actions[step] = self.actions.reshape(buffer.actions.shape[1:])
        buffer.rewards[step] = rewards
        buffer.episode_starts[step] = starts
        self.acted.append(self.actions)
        buffer.pos = step + 1
        buffer.full = buffer.pos == buffer.buffer_size
        return self

    @th.no_grad()
    def complete(self) -> None:
        """Fill in values, log-probabilities and bootstrapped rewards of the recorded steps that lack them yet."""
        buffer, arrays = self.buffer, vars(self.buffer)
        steps, self.n_complete = slice(self.n_complete, buffer.pos), buffer.pos
        n_steps = steps.stop - steps.start
        if n_steps == 0:
            return
        rows = {name: held[steps].reshape(-1, *held.shape[2:]) for name, held in parts_of(buffer.observations).items()}
        observations = obs_as_tensor(whole_of(rows), self.policy.device)
        # Not the buffer's actions, which have the action space's dtype instead of the policy's.
        actions, self.acted = self._as_policy_makes_them(np.concatenate(self.acted)), []
        arrays["values"][steps] = self._with_critic().values(observations).view(n_steps, -1).numpy()
        arrays["log_probs"][steps] = self.frozen.distribution(observations).log_prob(actions).view(n_steps, -1).numpy()
        if self.truncations:
            at, environments, last = zip(*self.truncations, strict=True)
            buffer.rewards[at, environments] += self.gamma * self._values_of(last)
            self.truncations = []
        for name, step, tensor in self.looked_at:
            arrays[name][step] = tensor.numpy().flatten()
        self.looked_at = []

    def _bootstrap(self, rewards: Array, dones: Array, infos: list[dict[str, Any]]) -> None:
        """Add the value of the last observation to the reward where an episode was cut off, at once or with the batch."""
        ended = _truncated(dones, infos, self.policy, self.buffer.pos + 1)
        if not self.watches:
            # Environments may write the next episode into the same arrays.
            self.truncations += [(self.buffer.pos, index, copy.deepcopy(last)) for index, last in ended]
        elif ended:
            for (index, _), value in zip(ended, self._values_of([last for _, last in ended]), strict=True):
                rewards[index] += self.gamma * value

    def _values_of(self, observations: Sequence[Any]) -> Array:
        values: Array = self._with_critic().values(self.policy.obs_to_tensor(stack(observations))[0]).numpy().flatten()
        return values

    def _with_critic(self) -> FrozenPolicy:
        """The copy, with the critic as it is once it is fitted."""
        if self.lacks_critic:
            self.lacks_critic = False
            self.model._settle_critic()
            self.frozen.read_critic()
        return self.frozen

    def finish(self) -> None:
        try:
            self.complete()
        finally:
            for take_back in self.take_back:
                take_back()
            self.take_back = []
        self._show_distribution()
        if not self.watches:
            self._look_for_other_draws()
            self.model._others_draw = bool(self.model._others_draw)

    def _distribution_was_written(self) -> None:
        """By the policy's own methods, as when a callback calls ``predict``: as in SB3 it stays until the next step."""
        self.is_shown = True

    def _show_distribution(self) -> None:
        """Set ``policy.action_dist`` to the distribution of the last step, as the policy's ``forward`` would have done."""
        if not self.is_shown and hasattr(self, "observations"):
            self.is_shown = True
            self.frozen.distribution(self.obs_tensor, into=self.policy.action_dist)

    def was_policy_changed(self) -> bool:
        """Whether ``model.policy`` has been replaced or changed since it was copied."""
        return self.model._acting_policy is not self.policy or not self.frozen.is_as_the_policy()

    def _hand_over(self, rewards: Array, starts: Array, dones: Array, infos: list[dict[str, Any]]) -> Acting:
        """Record this step, whose action is from the old policy, and return an object that collects with the changed one."""
        last = StepByStep(self.model, self.buffer, self.gamma)
        last.observations, last.actions, last.obs_tensor = self.observations, self.actions, self.obs_tensor
        last.values, last.log_probs = self.values, self.log_probs
        self.finish()
        last.record(rewards, starts, dones, infos)
        size = self.buffer.buffer_size
        return InOneBatch.of(self.model, self.buffer, self.gamma, size, self.n_envs, self.watches) or last

    def _next_noise(self) -> Array | None:
        distribution = self.policy.action_dist
        if self.actor.is_gsde:
            return None
        if not self.noise:
            n_steps = 1
            if not self.watches:
                self._look_for_other_draws()
                if self.model._others_draw is False:
                    left = self.buffer.buffer_size - self.buffer.pos
                    n_steps = min(left, max(1, MOST_NOISE // (self.n_envs * noise_width(distribution))))
            self.noise = list(self.actor.scaled(standard_noise(distribution, n_steps, self.n_envs).numpy())[::-1])
            self.generator = None if self.watches else th.get_rng_state()
        return self.noise.pop()

    def _look_for_other_draws(self) -> None:
        """Find out whether the environments draw from torch's generator between the steps."""
        if self.generator is not None and not th.equal(self.generator, th.get_rng_state()):
            self.model._others_draw = True

    def _as_policy_makes_them(self, actions: Array) -> th.Tensor:
        if isinstance(self.policy.action_space, spaces.Discrete):
            return th.as_tensor(actions.reshape(-1))
        return th.as_tensor(actions.reshape(len(actions), -1))


def _are_finite(*arrays: Array) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _truncated(dones: Array, infos: list[dict[str, Any]], policy: ActorCriticPolicy, step: int) -> list[tuple[int, Any]]:
    """Index and last observation of each environment whose episode was cut off in this step, the observation checked."""
    ended = [(int(index), infos[index]) for index in np.flatnonzero(dones)]
    found = [
        (index, info["terminal_observation"])
        for index, info in ended
        if info.get("TimeLimit.truncated", False) and info.get("terminal_observation") is not None
    ]
    for index, last in found:
        refuse_last(last, index, policy, f"in step {step} of the rollout")
    return found


def _when(buffer: RolloutBuffer) -> str:
    return f"before step {buffer.pos + 1} of the rollout"
