"""Checks that the numbers of a rollout are finite, and that those which are not leave no trace."""

import math
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo_plus.envs.notes import add_note
from sb3_trpo_plus.envs.vec_states import normalisers_of, statistics_of
from sb3_trpo_plus.policies.observations import parts_of, whole_of
from sb3_trpo_plus.rollouts.failures import unlike

Array = npt.NDArray[Any]


class NotFiniteError(ValueError):
    """An observation, a reward, an output of the policy or an action is NaN or infinite."""


class ObservationNotFiniteError(NotFiniteError):
    """An observation is NaN or infinite."""


class Guard:
    """
    Finds the step in which environments give numbers that are not finite, and undoes what these did to the running statistics
    of each ``VecNormalize`` around them, which would never recover.

    :param env: the environments
    """

    def __init__(self, env: VecEnv) -> None:
        self._watched = [(normaliser, list(statistics_of(normaliser).values())) for normaliser in normalisers_of(env)]
        self.keep()

    def keep(self) -> None:
        """To be called before each step or reset. Updates assign new arrays, so that references to these keep the values."""
        self._kept = [
            (normaliser, normaliser.returns, [(one, one.mean, one.var, one.count) for one in all_statistics])
            for normaliser, all_statistics in self._watched
        ]

    def look(self, rewards: Array, dones: Array, step: int) -> str | None:
        """
        To be called after each step.

        :param rewards: that the step gave, shape (environments,)
        :param dones: whether it ended an episode, shape (environments,)
        :param step: its number in the rollout, from 1
        :return: what is not finite, in a sentence; None if nothing is
        :raises ObservationNotFiniteError: it is an observation that a ``VecNormalize`` got; others are seen by the policy
        """
        total = np.add.reduce(rewards)
        for _, all_statistics in self._watched:
            for statistics in all_statistics:
                # The sum of a scalar takes ten times as long as the scalar.
                total += np.add.reduce(statistics.var, axis=None) if isinstance(statistics.var, np.ndarray) else statistics.var
        if math.isfinite(total):
            return None
        normaliser, by_observations = self._put_back(dones)
        if normaliser is None:
            return _in_words(rewards, step)
        if by_observations:
            when = f"before step {step + 1} of the rollout"
            raise ObservationNotFiniteError(
                observation_in_words(normaliser.old_obs, when) or _too_large(normaliser.old_obs, when)
            )
        return _in_words(normaliser.old_reward, step) or _too_large(normaliser.old_reward, f"in step {step} of the rollout")

    def look_at_reset(self) -> None:
        """
        To be called after a reset.

        :raises ObservationNotFiniteError: an observation that a ``VecNormalize`` got is not finite
        """
        normaliser, _ = self._put_back(None)
        if normaliser is not None:
            when = "after a reset"
            raise ObservationNotFiniteError(
                observation_in_words(normaliser.old_obs, when) or _too_large(normaliser.old_obs, when)
            )

    def _put_back(self, dones: Array | None) -> tuple[VecNormalize | None, bool]:
        """
        Give each ``VecNormalize`` one of whose statistics is not finite those that were kept.

        :param dones: whether a step ended an episode, shape (environments,); None after a reset
        :return: the innermost of them, which got the environments' own numbers, or None if there is none; and whether it was
            observations that spoilt it
        """
        innermost, by_observations = None, False
        for normaliser, returns, all_statistics in self._kept:
            broken = [statistics for statistics, *_ in all_statistics if not np.isfinite(statistics.var).all()]
            if not broken:
                continue
            innermost, by_observations = normaliser, any(one is not normaliser.ret_rms for one in broken)
            for statistics, mean, var, count in all_statistics:
                statistics.mean, statistics.var, statistics.count = mean, var, count
            if dones is not None:
                normaliser.returns = np.where(dones, 0.0, returns)
        return innermost, by_observations


def _in_words(rewards: Array, step: int) -> str | None:
    broken = np.flatnonzero(~np.isfinite(rewards))
    if not broken.size:
        return None
    return f"Environment {broken[0]} gave a reward that is not finite in step {step} of the rollout: {rewards[broken[0]]}"


def _too_large(numbers: Array | dict[str, Array], when: str) -> str:
    """For finite numbers whose squares are not."""
    largest: dict[int, float] = {}
    for part in parts_of(numbers).values():
        for index, row in enumerate(np.abs(part).reshape(len(part), -1)):
            largest[index] = max(largest.get(index, 0.0), float(row.max()))
    index = max(largest, key=lambda one: largest[one])
    return f"Environment {index} gave a number {when} that the statistics of VecNormalize can't hold: {largest[index]:.3g}"


def observation_in_words(observations: Array | dict[str, Array], when: str, first: int = 0) -> str | None:
    """
    What is not finite in the first of the observations of which something is not.

    :param observations: of all environments
    :param when: the step in words
    :param first: number of the environment of the first of them
    :return: a sentence; None if all are finite
    """
    for name, array in named(observations):
        for index, row in enumerate(array.reshape(len(array), -1)):
            broken = np.flatnonzero(~np.isfinite(row))
            if broken.size:
                return (
                    f"Environment {first + index} gave an {name} that is not finite {when}: {row[broken[0]]} at index "
                    f"{broken[0]}, and {broken.size} such numbers in all. No action was taken on it, and the model is as it "
                    "was: look for the cause in the environment (SB3's VecCheckNan finds the step that made it)"
                )
    return None


def refuse_not_finite(observations: Any, when: str) -> None:
    """
    :param observations: of all environments
    :param when: the step in words, for the message
    :raises ObservationNotFiniteError: one is NaN or infinite
    """
    if not all(bool(np.isfinite(array).all()) for array in parts_of(observations).values()):
        raise ObservationNotFiniteError(observation_in_words(observations, when))


def refuse_last(last: Any, index: int, policy: ActorCriticPolicy, when: str) -> None:
    """
    Check the last observation of an episode that was cut off, whose value takes the place of what would have followed.

    :param last: one observation
    :param index: number of its environment
    :param policy: that will value it
    :param when: the step in words, for messages
    :raises ObservationNotFiniteError: it is NaN or infinite
    """
    words = unlike(last, policy.observation_space)
    if words is not None:
        try:
            policy.obs_to_tensor(last)
        except Exception as error:
            add_note(error, f"Environment {index} ended an episode with an observation that {words}, {when}")
            raise
    rows = {key: np.asarray(part)[None] for key, part in parts_of(last).items()}
    if not all(bool(np.isfinite(row).all()) for row in rows.values()):
        raise ObservationNotFiniteError(observation_in_words(whole_of(rows), f"at the end of an episode, {when}", index))


def refuse_to_act(observations: Array | dict[str, Array], policy: ActorCriticPolicy, when: str) -> NoReturn:
    """
    Raise the error that names what is not finite: an observation, a parameter of the policy, or its outputs.

    :param observations: of all environments
    :param policy: the one that was given the observations
    :param when: the step in words, for the message
    :raises NotFiniteError: always
    """
    words = observation_in_words(observations, when)
    if words is not None:
        raise ObservationNotFiniteError(words)
    broken_parameter = first_broken_parameter(policy)
    cause = (
        f"its {broken_parameter} is not" if broken_parameter else "its outputs overflow, scale the observations (VecNormalize)"
    )
    raise NotFiniteError(f"The policy's actions are not finite {when}, while the observations are: {cause}")


def first_broken_parameter(policy: ActorCriticPolicy) -> str | None:
    """Name of the first parameter with a NaN or infinite element; None if there is none."""
    return next((name for name, parameter in policy.named_parameters() if not parameter.isfinite().all()), None)


def first_not_finite(rollout_buffer: RolloutBuffer) -> str | None:
    """
    The first part of a rollout with NaN or infinite elements, causes before effects: observations first, advantages last.

    :param rollout_buffer: full, with returns and advantages
    :return: its name for messages; None if all parts are finite
    """
    parts = [(name.replace("observation", "observations"), data) for name, data in named(rollout_buffer.observations)]
    parts += [("log-probabilities of the actions", rollout_buffer.log_probs), ("rewards", rollout_buffer.rewards)]
    parts += [("values", rollout_buffer.values), ("advantages", rollout_buffer.advantages)]
    return next((name for name, data in parts if not np.isfinite(data).all()), None)


def named(observations: Array | dict[str, Array]) -> list[tuple[str, Array]]:
    """Pairs of a name for messages and an array: one pair, or one for each key of a dict."""
    return [(f"observation {key}".strip(), array) for key, array in parts_of(observations).items()]
