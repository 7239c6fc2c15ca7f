"""Attributes of environments and wrappers as one pickle, with what stays in the environment written as its place there."""

import io
import pickle
import types
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import EzPickle, seeding
from stable_baselines3.common.monitor import Monitor, ResultsWriter

Env = gym.Env[Any, Any]
Place = tuple[int, str | None]

FINISHED_EPISODES = ("episode_returns", "episode_lengths", "episode_times")
ARGUMENTS = {"_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"}

FOR_DRAWING = {"Surface", "Clock", "Font", "Sound"}


class PlacePickler(pickle.Pickler):
    """Writes layers, engines and constants as the place where they are found."""

    def __init__(self, file: io.BytesIO, references: dict[int, Place]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.references = references

    def persistent_id(self, obj: Any) -> Place | None:
        return self.references.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, EzPickle):
            # Its own way is to call the constructor again, which makes a fresh one.
            return object.__new__, (type(obj),), vars(obj), None, None, _set_attributes
        return NotImplemented


def _set_attributes(obj: Any, attributes: dict[str, Any]) -> None:
    vars(obj).update(attributes)


class PlaceUnpickler(pickle.Unpickler):
    """Finds in the environment what :class:`PlacePickler` wrote the place of."""

    def __init__(self, file: io.BytesIO, layers: Sequence[Env]) -> None:
        super().__init__(file)
        self.layers = layers

    def persistent_load(self, place: Place) -> Any:
        index, name = place
        return self.layers[index] if name is None else vars(self.layers[index]).get(name)


def members(layer: Env) -> dict[str, Any]:
    """Its attributes, and the spaces that it has from its class."""
    of_class = {name: getattr(type(layer), name, None) for name in ("action_space", "observation_space")}
    return {**{name: value for name, value in of_class.items() if isinstance(value, spaces.Space)}, **vars(layer)}


def is_left_alone(layer: Env, name: str) -> bool:
    """By name, as the values are of common types."""
    if isinstance(layer, gym.Wrapper) and name == "env":
        return True
    if isinstance(layer, Monitor) and name in FINISHED_EPISODES:
        return True
    return name in ARGUMENTS or (name == "P" and type(layer).__module__.startswith("gymnasium.envs.toy_text"))


def is_constant(value: Any) -> bool:
    if isinstance(value, (list, tuple, dict)):
        values = value.values() if isinstance(value, dict) else value
        return bool(value) and all(map(is_constant, values))
    if isinstance(value, (spaces.Space, EnvSpec, ResultsWriter)):
        return True
    if isinstance(value, types.FunctionType):
        # Pickle finds the others by their names.
        return "<" in value.__qualname__
    module, name = type(value).__module__, type(value).__name__
    package = module.split(".")[0]
    return (
        (package == "mujoco" and name != "MjData")
        or (package == "pygame" and name in FOR_DRAWING)
        or module == "gymnasium.envs.mujoco.mujoco_rendering"
    )


def spaces_in(value: Any) -> Iterator[spaces.Space[Any]]:
    """A space, a container's spaces, and those that they are made of, which have random generators of their own."""
    if isinstance(value, spaces.Space):
        yield value
        value = list(vars(value).values())
    if isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from spaces_in(part)


def generator_of(space: spaces.Space[Any]) -> np.random.Generator:
    if vars(space)["_np_random"] is None:
        # Not by space.np_random, which in a space made of others would seed all of these anew.
        space._np_random, _ = seeding.np_random()
    return space.np_random
