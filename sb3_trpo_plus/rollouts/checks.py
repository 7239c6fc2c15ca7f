"""Whether a rollout can be used."""

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer


def first_not_finite(rollout_buffer: RolloutBuffer) -> str | None:
    """
    What of a rollout is not finite, named in the order in which one thing spoils the next.

    :param rollout_buffer: full, with returns and advantages
    :return: words for the first such part, None when the update can use all of it
    """
    observations = rollout_buffer.observations
    named = list(observations.items()) if isinstance(observations, dict) else [("", observations)]
    parts = [(f"observations {key}".strip(), data) for key, data in named]
    parts += [("log-probabilities of the actions", rollout_buffer.log_probs), ("rewards", rollout_buffer.rewards)]
    parts += [("values", rollout_buffer.values), ("advantages", rollout_buffer.advantages)]
    return next((name for name, data in parts if not np.isfinite(data).all()), None)
