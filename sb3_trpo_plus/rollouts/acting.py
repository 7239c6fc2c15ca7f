"""The two ways of going through a rollout: step by step as SB3, and with what can wait left for one batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo_plus.policies.distributions import refused_by_torch
from sb3_trpo_plus.policies.observations import parts_of, stack, whole_of
from sb3_trpo_plus.policies.plain import is_plain_buffer
from sb3_trpo_plus.rollouts.checks import first_broken_parameter, refuse_to_act
from sb3_trpo_plus.rollouts.fast_actor import FastActor, Observations
from sb3_trpo_plus.rollouts.frozen import FrozenPolicy, filled_when_read
from sb3_trpo_plus.rollouts.noise import noise_width, standard_noise

Array = npt.NDArray[Any]
# Numbers of noise that are drawn at a time, where nobody else draws between the steps.
MOST_NOISE = 2**20


class Acting(Protocol):
    """
    One of the ways. Its ``obs_tensor``, ``values`` and ``log_probs`` are those of the step that :meth:`act` was called for, as
    ``OnPolicyAlgorithm.collect_rollouts`` has them.
    """

    @property
    def obs_tensor(self) -> PyTorchObs: ...
    @property
    def values(self) -> th.Tensor: ...
    @property
    def log_probs(self) -> th.Tensor: ...

    def act(self, observations: Observations) -> Array:
        """
        :param observations: of all environments
        :return: the actions as the policy makes them, shape (environments, ...)
        :raises NotFiniteError: they, or the observations, are not finite
        """

    def noise_was_reset(self) -> None:
        """gSDE has new matrices."""

    def record(self, rewards: Array, starts: Array, dones: Array, infos: list[dict[str, Any]]) -> Acting:
        """
        Put the step into the buffer.

        :param rewards: of all environments
        :param starts: whether an episode began with the observations
        :param dones: whether it ended with the step
        :param infos: of the step
        :return: the way to go on
        """

    def finish(self) -> None:
        """Complete the buffer."""

    def was_policy_changed(self) -> bool:
        """Whether the policy is another than the one that acts."""


class StepByStep:
    """
    SB3's way, for any policy and buffer.

    :param model: whose policy acts
    :param buffer: to be filled
    :param gamma: discount factor, of what truncated episodes would have gone on to earn
    """

    def __init__(self, model: OnPolicyAlgorithm, buffer: RolloutBuffer, gamma: float) -> None:
        self.model, self.buffer, self.gamma = model, buffer, gamma

    @property
    def policy(self) -> ActorCriticPolicy:
        """Read anew at each step, as users may put another in its place."""
        return self.model.policy

    @th.no_grad()
    def act(self, observations: Observations) -> Array:
        self.observations = observations
        self.obs_tensor = obs_as_tensor(observations, self.policy.device)
        if not all(np.isfinite(array).all() for array in parts_of(observations).values()):
            refuse_to_act(observations, self.policy, _when(self.buffer))
        try:
            actions, self.values, self.log_probs = self.policy(self.obs_tensor)
        except (ValueError, RuntimeError) as error:
            # Torch's distributions, or where those do not look its samplers, refuse with the whole batch for a message.
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
        for index, last in _truncated(dones, infos):
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
    For plain policies on the CPU: per step only what the next action needs.

    Values, log-probabilities and the values of truncated episodes' last observations follow in one batch each, when the
    rollout is complete or somebody looks at them. They are those of the policy that acted, whatever has become of it since.

    :param model: whose policy it is
    :param frozen: the policy, that acts
    :param buffer: plain, to be filled from where it stands to its end
    :param gamma: discount factor
    :param n_envs: environments
    :param watches: whether somebody else's code runs between the steps. The noise is then drawn step by step, as SB3 draws it;
        a policy that has been changed acts from the next step on; and the buffer and the policy's distribution are filled when
        they are looked at
    """

    @classmethod
    def of(
        cls, model: OnPolicyAlgorithm, buffer: RolloutBuffer, gamma: float, n_steps: int, n_envs: int, watches: bool
    ) -> InOneBatch | None:
        """:return: None where the policy or the buffer is not plain, or the buffer longer than the rollout"""
        if not is_plain_buffer(buffer) or n_steps != buffer.buffer_size:
            return None
        frozen = FrozenPolicy.of(model.policy)
        return None if frozen is None else cls(model, frozen, buffer, gamma, n_envs, watches)

    def __init__(
        self,
        model: OnPolicyAlgorithm,
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
        self.n_complete = buffer.pos
        self.acted: list[Array] = []
        self.truncations: list[tuple[int, int, Any]] = []
        self.looked_at: dict[int, tuple[th.Tensor, th.Tensor]] = {}
        self.is_shown = False
        self._values: th.Tensor | None = None
        self._log_probs: th.Tensor | None = None
        self.take_back: list[Callable[[], None]] = []
        if watches:
            self.take_back = [
                filled_when_read(buffer, ("values", "log_probs"), self.complete),
                filled_when_read(self.policy.action_dist, ("distribution",), self._show_distribution),
            ]

    def act(self, observations: Observations) -> Array:
        self.observations = observations
        self._values = self._log_probs = None
        self.is_shown = False
        self.actions = self.actor.act(observations, self._next_noise())
        if not (np.isfinite(self.actor.outputs).all() and np.isfinite(self.actor.inputs).all()):
            self.is_shown = True
            refuse_to_act(observations, self.policy, _when(self.buffer))
        return self.actions

    @property
    def obs_tensor(self) -> PyTorchObs:
        return obs_as_tensor(self.observations, self.policy.device)

    @property
    def values(self) -> th.Tensor:
        if self._values is None:
            self._values = self.frozen.values(self.obs_tensor)
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
            if self._values is not None or self._log_probs is not None:
                # Whoever has looked at them may have changed them.
                self.looked_at[self.buffer.pos] = self.values, self.log_probs
        buffer, step, ended = self.buffer, self.buffer.pos, _truncated(dones, infos)
        if self.watches and ended:
            for (index, _), value in zip(ended, self._values_of([last for _, last in ended]), strict=True):
                rewards[index] += self.gamma * value
        else:
            # Environments may write the next episode into the same arrays.
            self.truncations += [(step, index, copy.deepcopy(last)) for index, last in ended]
        given = parts_of(self.observations)
        for name, held in parts_of(buffer.observations).items():
            held[step] = given[name].reshape(held.shape[1:])
        buffer.actions[step] = self.actions.reshape(buffer.actions.shape[1:])
        buffer.rewards[step] = rewards
        buffer.episode_starts[step] = starts
        self.acted.append(self.actions)
        buffer.pos = step + 1
        buffer.full = buffer.pos == buffer.buffer_size
        return self

    @th.no_grad()
    def complete(self) -> None:
        """Values, log-probabilities and bootstraps of the steps that are in the buffer, into the buffer."""
        buffer, arrays = self.buffer, vars(self.buffer)
        steps, self.n_complete = slice(self.n_complete, buffer.pos), buffer.pos
        n_steps = steps.stop - steps.start
        if n_steps == 0:
            return
        rows = {name: held[steps].reshape(-1, *held.shape[2:]) for name, held in parts_of(buffer.observations).items()}
        observations = obs_as_tensor(whole_of(rows), self.policy.device)
        # The buffer's have the action space's type.
        actions, self.acted = self._as_policy_makes_them(np.concatenate(self.acted)), []
        arrays["values"][steps] = self.frozen.values(observations).view(n_steps, -1).numpy()
        arrays["log_probs"][steps] = self.frozen.distribution(observations).log_prob(actions).view(n_steps, -1).numpy()
        if self.truncations:
            at, environments, last = zip(*self.truncations, strict=True)
            buffer.rewards[at, environments] += self.gamma * self._values_of(last)
            self.truncations = []
        for step, (values, log_probs) in self.looked_at.items():
            arrays["values"][step], arrays["log_probs"][step] = values.numpy().flatten(), log_probs.numpy()
        self.looked_at = {}

    def _values_of(self, observations: Sequence[Any]) -> Array:
        values: Array = self.frozen.values(self.policy.obs_to_tensor(stack(observations))[0]).numpy().flatten()
        return values

    def finish(self) -> None:
        self.complete()
        for take_back in self.take_back:
            take_back()
        self.take_back = []
        self._show_distribution()

    def _show_distribution(self) -> None:
        """Leave the policy with the distribution of the last step, as its own forward does."""
        if not self.is_shown and hasattr(self, "observations"):
            self.is_shown = True
            self.frozen.distribution(self.obs_tensor, into=self.policy.action_dist)

    def was_policy_changed(self) -> bool:
        """Since it was frozen."""
        return self.model.policy is not self.policy or not self.frozen.is_as_the_policy()

    def _hand_over(self, rewards: Array, starts: Array, dones: Array, infos: list[dict[str, Any]]) -> Acting:
        """Go on with the policy as it is now. The last action was still the old one's."""
        last = StepByStep(self.model, self.buffer, self.gamma)
        last.observations, last.actions, last.obs_tensor = self.observations, self.actions, self.obs_tensor
        last.values, last.log_probs = self.values, self.log_probs
        self.finish()
        last.record(rewards, starts, dones, infos)
        size = self.buffer.buffer_size
        return InOneBatch.of(self.model, self.buffer, self.gamma, size, self.n_envs, self.watches) or last

    def _next_noise(self) -> Array | None:
        distribution = self.policy.action_dist
        if isinstance(distribution, StateDependentNoiseDistribution):
            return None
        if not self.noise:
            left = self.buffer.buffer_size - self.buffer.pos
            n_steps = 1 if self.watches else min(left, max(1, MOST_NOISE // (self.n_envs * noise_width(distribution))))
            self.noise = list(self.actor.scaled(standard_noise(distribution, n_steps, self.n_envs).numpy())[::-1])
        return self.noise.pop()

    def _as_policy_makes_them(self, actions: Array) -> th.Tensor:
        if isinstance(self.policy.action_space, spaces.Discrete):
            return th.as_tensor(actions.reshape(-1))
        return th.as_tensor(actions.reshape(len(actions), -1))


def _truncated(dones: Array, infos: list[dict[str, Any]]) -> list[tuple[int, Any]]:
    """Environments whose episode was cut off by a time limit, with its last observation."""
    if not dones.any():
        return []
    ended = [(int(index), infos[index]) for index in np.flatnonzero(dones)]
    return [
        (index, info["terminal_observation"])
        for index, info in ended
        if info.get("TimeLimit.truncated", False) and info.get("terminal_observation") is not None
    ]


def _when(buffer: RolloutBuffer) -> str:
    return f"before step {buffer.pos + 1} of the rollout"
