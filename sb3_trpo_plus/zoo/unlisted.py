"""What the entry ``default`` must be told about the observations of an environment that has no entry of its own."""

from typing import Any

import gymnasium as gym
from gymnasium import spaces
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

from sb3_trpo_plus.envs.wrappers import space_with_channel

SMALLEST_IMAGE = 36
READ_BY_SB3 = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)

Settings = dict[str, Any]


def settings_for(env_id: str, env_kwargs: Settings, settings: Settings, given: Settings) -> tuple[Settings, spaces.Space[Any]]:
    """
    Settings on top of ``default`` that suit the observations of an environment.

    - The policy: ``CnnPolicy`` for images, ``MultiInputPolicy`` for a Dict, ``MlpPolicy`` for all else.
    - ``normalize``, if ``default`` does: each Box that is no image, by its key in a Dict; the rewards always.
    - ``env_wrapper``: observations that SB3 can't read are flattened (Tuple, nested Dict) or, where Gymnasium can't flatten
      them, left out of their Dict; grey images without a channel are given one.

    An image is what SB3's ``NatureCNN`` can read: three dimensions, uint8 from 0 to 255, at least 36 x 36. Smaller ones are
    normalised and flattened.

    :param env_id: a registered id
    :param env_kwargs: for its constructor
    :param settings: ``default`` of the algorithm
    :param given: settings that the user asked for, which hold whatever is found here
    :return: the settings, without those that were given; and the space of the observations, before they are normalised
    """
    wrapper = _wrapper_of({**settings, **given})
    with gym.make(env_id, **env_kwargs) as made:
        env = wrapper(made)
        found = _readable(env.observation_space) if "env_wrapper" not in given else []
        if found:
            found = [*_as_list(settings.get("env_wrapper")), *found]
            env = _wrapper_of({"env_wrapper": found})(made)
        space = env.observation_space
    normalize = _normalisation(space) if settings.get("normalize") else _only_small_images(space)
    suited = {
        **({"env_wrapper": found} if found else {}),
        "policy": _policy(space),
        **({"normalize": normalize} if normalize else {}),
    }
    return {name: value for name, value in suited.items() if name not in given}, space


def _policy(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) and not _is_vector(space) else "MlpPolicy"


def _normalisation(space: spaces.Space[Any]) -> Settings | bool:
    if isinstance(space, spaces.Dict):
        keys = [key for key, part in space.spaces.items() if _is_vector(part)]
        return {"norm_obs_keys": keys} if keys else {"norm_obs": False}
    return True if _is_vector(space) else {"norm_obs": False}


def _only_small_images(space: spaces.Space[Any]) -> Settings:
    """SB3 gives every image in a Dict a convolutional network, which can't read small ones; normalised, they are flattened."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {}
    small = [key for key, part in parts.items() if _is_vector(part) and is_image_space(part)]
    return {"norm_obs_keys": small, "norm_reward": False} if small else {}


def _is_vector(space: spaces.Space[Any]) -> bool:
    """Numbers that can be normalised, and that are no image for a convolutional network."""
    return isinstance(space, spaces.Box) and not (is_image_space(space) and min(_height_and_width(space)) >= SMALLEST_IMAGE)


def _height_and_width(space: spaces.Box) -> tuple[int, ...]:
    return space.shape[1:] if is_image_space_channels_first(space) else space.shape[:2]


def _readable(space: spaces.Space[Any]) -> list[Any]:
    """Wrappers, as RL Zoo's files name them, after which SB3 can read the observations; none if it can already."""
    if isinstance(space, spaces.Box) and len(space.shape) == 2 and is_image_space(space_with_channel(space)):
        if min(space.shape) >= SMALLEST_IMAGE:
            return ["sb3_trpo_plus.wrappers.with_channel"]
        return []
    if isinstance(space, READ_BY_SB3):
        return []
    parts = space.spaces if isinstance(space, spaces.Dict) else {}
    readable = [key for key, part in parts.items() if isinstance(part, READ_BY_SB3)]
    if parts and len(readable) == len(parts):
        return []
    if _can_be_flattened(space):
        return ["gymnasium.wrappers.FlattenObservation"]
    if readable:
        return [{"gymnasium.wrappers.FilterObservation": {"filter_keys": readable}}]
    return []


def _can_be_flattened(space: spaces.Space[Any]) -> bool:
    try:
        return isinstance(spaces.flatten_space(space), spaces.Box)
    except NotImplementedError:  # a space of the environment's own, such as MiniGrid's missions
        return False


def _wrapper_of(settings: Settings) -> Any:
    return get_wrapper_class(settings) or (lambda env: env)


def _as_list(wrappers: Any) -> list[Any]:
    return wrappers if isinstance(wrappers, list) else [wrappers] if wrappers is not None else []
