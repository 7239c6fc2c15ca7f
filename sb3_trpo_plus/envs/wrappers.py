"""Environment wrappers for RL Zoo's ``env_wrapper``."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction


def unit_actions(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """
    Rescale the actions of an environment to [-1, 1].

    exp(``log_std_init``) is then a fraction of half the range of each action, so that one value suits all environments.

    :param env: with any action space
    :return: the wrapped environment; the environment itself if its action space is not a bounded Box, or already [-1, 1]
    """
    space = env.action_space
    if not (isinstance(space, spaces.Box) and space.is_bounded()) or not np.issubdtype(space.dtype, np.floating):
        return env
    if np.all(space.low == -1) and np.all(space.high == 1):
        return env
    return RescaleAction(env, np.float32(-1), np.float32(1))


def with_channel(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """
    Give grey images the channel that SB3's convolutional networks ask for: height x width becomes height x width x 1.

    :param env: with a Box of two dimensions for its observations
    :return: the wrapped environment
    """
    return _WithChannel(env)


def space_with_channel(space: spaces.Box) -> spaces.Box:
    """The space of :func:`with_channel`'s observations, from that of the environment."""
    return spaces.Box(space.low[..., None], space.high[..., None], dtype=np.dtype(space.dtype).type)


class _WithChannel(gym.ObservationWrapper[Any, Any, Any]):
    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, spaces.Box), f"with_channel is for images, but the observations are {space}"
        self.observation_space = space_with_channel(space)

    def observation(self, observation: Any) -> Any:
        return observation[..., None]
