"""Pickling of the attributes of environments and wrappers, with references to objects that are not part of the state."""

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
    """Writes environments, wrappers, engines and constants as references: index of the layer, and name of the attribute."""

    def __init__(self, file: io.BytesIO, references: dict[int, Place]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.references = references

    def persistent_id(self, obj: Any) -> Place | None:
        return self.references.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, EzPickle):
            # EzPickle's own __setstate__ would call the constructor, and lose the state.
            return object.__new__, (type(obj),), vars(obj), None, None, _set_attributes
        return NotImplemented


def _set_attributes(obj: Any, attributes: dict[str, Any]) -> None:
    vars(obj).update(attributes)


class PlaceUnpickler(pickle.Unpickler):
    """Resolves the references of :class:`PlacePickler` to the objects of an environment."""

    def __init__(self, file: io.BytesIO, layers: Sequence[Env]) -> None:
        super().__init__(file)
        self.layers = layers

    def persistent_load(self, place: Place) -> Any:
        index, name = place
        return self.layers[index] if name is None else vars(self.layers[index]).get(name)


def members(layer: Env) -> dict[str, Any]:
    """Attributes of an environment or wrapper, including spaces that are class attributes."""
    of_class = {name: getattr(type(layer), name, None) for name in ("action_space", "observation_space")}
    return {**{name: value for name, value in of_class.items() if isinstance(value, spaces.Space)}, **vars(layer)}


def is_left_alone(layer: Env, name: str) -> bool:
    """Whether an attribute is no part of the state; by name, since its value's type does not tell."""
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
        # Lambdas and local functions, which pickle can't find by name.
        return "<" in value.__qualname__
    module, name = type(value).__module__, type(value).__name__
    package = module.split(".")[0]
    return (
        (package == "mujoco" and name != "MjData")
        or (package == "pygame" and name in FOR_DRAWING)
        or module == "gymnasium.envs.mujoco.mujoco_rendering"
    )


def spaces_in(value: Any) -> Iterator[spaces.Space[Any]]:
    """All spaces in a value, nested ones included, since each has its own random generator."""
    if isinstance(value, spaces.Space):
        yield value
        value = list(vars(value).values())
    if isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from spaces_in(part)


def generator_of(space: spaces.Space[Any]) -> np.random.Generator:
    if vars(space)["_np_random"] is None:
        # Not space.np_random, which in Dict and Tuple spaces would reseed all subspaces.
        space._np_random, _ = seeding.np_random()
    return space.np_random
