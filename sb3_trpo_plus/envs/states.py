"""
Putting environments back into an earlier state, as the vine procedure of TRPO needs it.

:func:`get_state` and :func:`set_state` take an environment with all its wrappers, :func:`get_vec_state` and
:func:`set_vec_state` one environment of an SB3 ``VecEnv`` with what the ``VecEnv`` wrappers keep for it. The same actions
after restoring give the same trajectory to the bit, time limit and random generators included, in the same instance or in
another of the same make.

* An environment or wrapper that implements :class:`HasState` saves its own state, and that of everything it wraps.
* Of all others the attributes are pickled together, apart from constants and what is used for rendering and files. Spaces are
  not pickled, but their random generators are.
* MuJoCo's ``MjData`` is copied as a whole: after a step its derived quantities lag one substep behind the positions, and
  rewards are computed from them, so that ``mj_forward`` on restored positions would change the next reward.
* ALE is cloned with its random generator, which decides about sticky actions. The previous action, which these repeat, can't
  be cloned: it becomes the no-op when a state is saved and when it is restored.

State elsewhere, in a server, a global variable or a C library, is not saved: ``check_restorable`` detects that. ``MjModel``,
toy text's ``P``, lambdas and local functions are assumed to be constant. A wrapper that records videos goes on recording.
"""

import inspect
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym

from sb3_trpo_plus.envs.engines import engine_state, is_engine, restore_ale
from sb3_trpo_plus.envs.pickling import (
    Env,
    Place,
    PlacePickler,
    PlaceUnpickler,
    generator_of,
    is_constant,
    is_left_alone,
    members,
    spaces_in,
)

ADVICE = "Give it methods get_state() and set_state(state) of its own, see sb3_trpo_plus.states.HasState"

# RL Zoo puts these in the place of gymnasium's in each process that imports it; they have the same attributes.
RL_ZOO_CLASSES = {"PatchedTimeLimit": "TimeLimit"}


class HasState(Protocol):
    """What an environment or wrapper may implement to be restored in its own way, with everything beneath it."""

    def get_state(self) -> Any:
        """Everything that later observations, rewards, episode ends and resets depend on; must be picklable."""

    def set_state(self, state: Any) -> None:
        """Restore what :meth:`get_state` of this instance, or of another made in the same way, returned."""


@dataclass(frozen=True)
class State:
    """
    State of an environment and its wrappers, which shares no objects with them, and can be pickled.

    :param layers: class names of the wrappers, from the outermost, and of the environment
    :param pickled: their attributes
    :param engines: copies of ``MjData`` and ``ALEState``, by index of the layer and name of the attribute
    """

    layers: tuple[str, ...]
    pickled: bytes = field(repr=False)
    engines: dict[tuple[int, str], Any] = field(repr=False)


def get_state(env: Env) -> State:
    """
    Save the state of an environment that has been reset, with that of all its wrappers.

    The lists of finished episodes that SB3's ``Monitor`` keeps are not part of it.

    :param env: is not changed, except that random generators it would create at first use are created
    :return: the state, which later steps of the environment do not change
    :raises TypeError: something in it can't be copied
    """
    layers = layers_of(env)
    if not _has_state(layers[-1]):
        # Create the generator now: created at first use, it would be a different one after each restoring.
        _ = layers[-1].np_random
    references: dict[int, Place] = {id(layer): (index, None) for index, layer in enumerate(layers)}
    engines: dict[tuple[int, str], Any] = {}
    parts: list[Any] = []
    for index, layer in enumerate(layers):
        if _has_state(layer):
            parts.append(layer.get_state())  # type: ignore[attr-defined]
            continue
        attributes, left, generators = {}, set(), {}
        for name, value in members(layer).items():
            if is_engine(value) and id(value) not in references:
                references[id(value)] = index, name
                engines[index, name] = engine_state(value)
            if is_left_alone(layer, name) or (index, name) in engines:
                left.add(name)
            elif is_constant(value):
                left.add(name)
                references[id(value)] = index, name
                if found := [generator_of(space) for space in spaces_in(value)]:
                    generators[name] = found
            else:
                attributes[name] = value
        parts.append((attributes, left, generators))
    file = io.BytesIO()
    try:
        PlacePickler(file, references).dump(parts)
    except Exception as error:
        raise TypeError(
            f"The state of {name_of(env)} can't be saved: {_culprit(layers, parts, references)}. {ADVICE}"
        ) from error
    return State(class_names(layers), file.getvalue(), engines)


def set_state(env: Env, state: State) -> None:
    """
    Put an environment, with all its wrappers, back into a saved state.

    :param env: the one that the state was saved of, or another made in the same way
    :param state: is not changed, and can be restored again
    :raises ValueError: the state is of an environment with other wrappers or of another class
    """
    layers = layers_of(env)
    if class_names(layers) != state.layers:
        raise ValueError(f"A state of {' of '.join(state.layers)} can't be restored in {name_of(env)}, which is {env}")
    for (index, name), engine in state.engines.items():
        # In place, since the environment, its renderer and NumPy views refer to the object.
        current = vars(layers[index])[name]
        if hasattr(engine, "qpos"):
            sys.modules["mujoco"].mj_copyData(current, current.model, engine)
        else:
            restore_ale(current, engine)
    for layer, part in zip(layers, PlaceUnpickler(io.BytesIO(state.pickled), layers).load(), strict=True):
        if _has_state(layer):
            layer.set_state(part)  # type: ignore[attr-defined]
            continue
        attributes, left, generators = part
        current = vars(layer)
        # Constants created since then, such as a window or a font, are kept.
        free = [name for name, value in current.items() if name not in left and not is_constant(value)]
        for name in free:
            if name not in attributes:
                del current[name]
        current.update({name: value for name, value in attributes.items() if name in free or name not in current})
        for name, saved in generators.items():
            for space, generator in zip(spaces_in(members(layer)[name]), saved, strict=True):
                space._np_random = generator


class Restorable(gym.Wrapper[Any, Any, Any, Any]):
    """
    Gives access to the state of an environment in another process, for ``SubprocVecEnv``.

    It must be the outermost wrapper, outside of ``Monitor`` too, as in ``make_vec_env(..., wrapper_class=Restorable)``; with
    other wrappers, ``wrapper_class=lambda env: Restorable(AtariWrapper(env))``.

    :param env: to be wrapped
    """

    def get_state(self) -> State:
        """See :func:`get_state`. The state can also be restored in the same environment without this wrapper."""
        return get_state(self)

    def set_state(self, state: State) -> None:
        """See :func:`set_state`."""
        set_state(self, state)

    def attempt(self, function: Callable[..., Any], *args: Any) -> Any:
        """
        Call a function with this environment, and return exceptions, which would end the worker process of ``SubprocVecEnv``.

        :param function: takes the environment and ``args``
        :return: what the function returned, or the exception that it raised
        """
        try:
            return function(self, *args)
        except Exception as error:
            # Other classes may not exist in the main process, or not be picklable.
            return error if type(error) in (TypeError, ValueError) else RuntimeError(f"{type(error).__name__}: {error}")


def layers_to_base(env: Env) -> Iterator[Env]:
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, Restorable):
            yield env
        env = env.env
    yield env


def layers_of(env: Env) -> list[Env]:
    """The wrappers from the outermost, and the environment; up to the first :class:`HasState`, which covers all it wraps."""
    layers = []
    for layer in layers_to_base(env):
        layers.append(layer)
        if _has_state(layer):
            break
    return layers


def _has_state(layer: Env) -> bool:
    """Whether it implements :class:`HasState`; by signature, since MuJoCo environments have a ``set_state(qpos, qvel)``."""
    cls: Any = type(layer)
    if not (hasattr(cls, "get_state") and hasattr(cls, "set_state")):
        return False
    try:
        inspect.signature(cls.get_state).bind(layer)
        inspect.signature(cls.set_state).bind(layer, None)
    except TypeError:
        return False
    return True


def name_of(env: Env) -> str:
    base = env.unwrapped
    return base.spec.id if base.spec is not None else type(base).__name__


def class_names(layers: Iterable[Any]) -> tuple[str, ...]:
    """Names that are the same in processes with RL Zoo and without."""
    return tuple(RL_ZOO_CLASSES.get(name, name) for name in (type(layer).__qualname__ for layer in layers))


def _culprit(layers: Sequence[Env], parts: Sequence[Any], references: dict[int, Place]) -> str:
    """The attribute that can't be pickled, and why, in words."""
    for layer, part in zip(layers, parts, strict=True):
        attributes = {"get_state()": part} if _has_state(layer) else part[0]
        for name, value in attributes.items():
            try:
                PlacePickler(io.BytesIO(), references).dump(value)
            except Exception as error:
                return f"{name} of {type(layer).__name__}, a {type(value).__name__}, can't be copied ({error})"
    return "its attributes can't be copied together"
