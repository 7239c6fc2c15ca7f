"""Whether what a rollout is made of can be used."""

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo_plus.policies.observations import parts_of

Array = npt.NDArray[Any]


class NotFiniteError(ValueError):
    """A number on the way from an observation to an action is NaN or infinite."""


def refuse_to_act(observations: Array | dict[str, Array], policy: ActorCriticPolicy, when: str) -> NoReturn:
    """
    Say what is not finite, and where.

    :param observations: of all environments
    :param policy: that acted
    :param when: words for the step
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
    """Name of a parameter that is not finite; None if all are."""
    return next((name for name, parameter in policy.named_parameters() if not parameter.isfinite().all()), None)


def first_not_finite(rollout_buffer: RolloutBuffer) -> str | None:
    """
    What of a rollout is not finite, named in the order in which one thing spoils the next.

    :param rollout_buffer: full, with returns and advantages
    :return: words for the first such part, None when the update can use all of it
    """
    parts = [(name.replace("observation", "observations"), data) for name, data in named(rollout_buffer.observations)]
    parts += [("log-probabilities of the actions", rollout_buffer.log_probs), ("rewards", rollout_buffer.rewards)]
    parts += [("values", rollout_buffer.values), ("advantages", rollout_buffer.advantages)]
    return next((name for name, data in parts if not np.isfinite(data).all()), None)


def named(observations: Array | dict[str, Array]) -> list[tuple[str, Array]]:
    """Arrays of observations, with words for them."""
    return [(f"observation {key}".strip(), array) for key, array in parts_of(observations).items()]
