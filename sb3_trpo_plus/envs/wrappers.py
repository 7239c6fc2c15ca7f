"""Environment wrappers for RL Zoo's ``env_wrapper``."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction


def unit_actions(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """
    Let the agent act in [-1, 1], whatever the bounds of the environment's actions.

    ``log_std_init`` is then a fraction of half the range, and one value of it suits all of them.

    :param env: with any action space
    :return: the environment itself where its actions are not a bounded Box, or have these bounds already
    """
    space = env.action_space
    if not (isinstance(space, spaces.Box) and space.is_bounded()) or not np.issubdtype(space.dtype, np.floating):
        return env
    if np.all(space.low == -1) and np.all(space.high == 1):
        return env
    return RescaleAction(env, np.float32(-1), np.float32(1))
