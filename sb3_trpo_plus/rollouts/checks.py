"""Checks that the numbers of a rollout are finite."""

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo_plus.policies.observations import parts_of

Array = npt.NDArray[Any]


class NotFiniteError(ValueError):
    """An observation, an output of the policy or an action is NaN or infinite."""


def refuse_to_act(observations: Array | dict[str, Array], policy: ActorCriticPolicy, when: str) -> NoReturn:
    """
    Raise the error that names what is not finite: an observation, a parameter of the policy, or its outputs.

    :param observations: of all environments
    :param policy: the one that was given the observations
    :param when: the step in words, for the message
    :raises NotFiniteError: always
    """
    for name, array in named(observations):
        for index, row in enumerate(array.reshape(len(array), -1)):
            broken = np.flatnonzero(~np.isfinite(row))
            if broken.size:
                raise NotFiniteError(
                    f"Environment {index} gave an {f'{name} that is'} not finite {when}: {row[broken[0]]} at index "
                    f"{broken[0]}, and {broken.size} such numbers in all. No action was taken on it, and the model is as it "
                    "was: look for the cause in the environment (SB3's VecCheckNan finds the step that made it)"
                )
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
