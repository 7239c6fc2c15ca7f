"""
Putting environments back into an earlier state, as the vine procedure of TRPO needs it.

:func:`get_state` and :func:`set_state` take an environment with all its wrappers, :func:`get_vec_state` and
:func:`set_vec_state` one environment of an SB3 ``VecEnv`` with what the ``VecEnv`` wrappers keep for it. The same actions
after restoring give the same trajectory to the bit, time limit and random generators included, in the same instance or in
another of the same make.

* An environment or wrapper of one's own that is a :class:`HasState` answers for itself and for all beneath it.
* Of any other wrapper and environment the attributes are pickled, all in one go. Left alone are those that do not change, and
  those for drawing and for files; spaces stay too, but their random generators are part of the state.
* MuJoCo's ``MjData`` is copied as a whole: after a step its derived quantities lag one substep behind the positions, and
  rewards are computed from them, so that ``mj_forward`` on restored positions would change the next reward.
* ALE is cloned with its random generator, which decides over sticky actions. What such an action repeats can't be cloned:
  where a state is saved, and where it is restored, that is the no-op.

What lives elsewhere, in a server, a global variable or a C library, escapes: :func:`check_restorable` finds that out.
``MjModel``, toy text's ``P`` and unnamed functions are taken for constant. A wrapper that records videos goes on recording.
"""

import copy
import inspect
import io
import math
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import EzPickle, seeding
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

Env = gym.Env[Any, Any]
Place = tuple[int, str | None]

ADVICE = "Give it methods get_state() and set_state(state) of its own, see sb3_trpo_plus.states.HasState"
ARGUMENTS = {"_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"}
# Probability that a sticky action is not made the no-op.
UNHEARD = 1e-12
FOR_DRAWING = {"Surface", "Clock", "Font", "Sound"}
FINISHED_EPISODES = ("episode_returns", "episode_lengths", "episode_times")


class HasState(Protocol):
    """What an environment or wrapper may implement to be restored in its own way, with everything beneath it."""

    def get_state(self) -> Any:
        """All that later observations, rewards, ends and resets depend on; to be picklable."""

    def set_state(self, state: Any) -> None:
        """:param state: what :meth:`get_state` has returned, of this instance or another of its make"""


@dataclass(frozen=True)
class State:
    """
    State of an environment and its wrappers, which shares nothing with them, and can be pickled.

    :param layers: classes of the wrappers from outside, and of the environment
    :param pickled: their attributes
    :param engines: copies of ``MjData`` and ``ALEState``, by layer and attribute
    """

    layers: tuple[str, ...]
    pickled: bytes = field(repr=False)
    engines: dict[tuple[int, str], Any] = field(repr=False)


@dataclass(frozen=True)
class VecState:
    """
    State of one environment of a ``VecEnv``.

    :param env: of the environment itself
    :param wrappers: classes of the ``VecEnvWrapper`` from outside
    :param rows: what each of them keeps for this environment
    """

    env: State
    wrappers: tuple[str, ...]
    rows: tuple[dict[str, Any], ...] = field(repr=False)


def get_state(env: Env) -> State:
    """
    Save the state of an environment that has been reset, with that of all its wrappers.

    The log of finished episodes that SB3's ``Monitor`` keeps is no part of it.

    :param env: is not changed, but random generators that it would make at first use are made
    :return: which later steps do not change
    :raises TypeError: something in it can't be copied
    """
    layers = _layers(env)
    if not _has_state(layers[-1]):
        # Made at their first use only, the generators would start anew after each restoring.
        _ = layers[-1].np_random
    references: dict[int, Place] = {id(layer): (index, None) for index, layer in enumerate(layers)}
    engines: dict[tuple[int, str], Any] = {}
    parts: list[Any] = []
    for index, layer in enumerate(layers):
        if _has_state(layer):
            parts.append(layer.get_state())  # type: ignore[attr-defined]
            continue
        attributes, left, generators = {}, set(), {}
        for name, value in _members(layer).items():
            if _is_engine(value) and id(value) not in references:
                references[id(value)] = index, name
                engines[index, name] = _engine_state(value)
            if _is_left_alone(layer, name) or (index, name) in engines:
                left.add(name)
            elif _is_constant(value):
                left.add(name)
                references[id(value)] = index, name
                if found := [_generator(space) for space in _spaces_in(value)]:
                    generators[name] = found
            else:
                attributes[name] = value
        parts.append((attributes, left, generators))
    file = io.BytesIO()
    try:
        _Pickler(file, references).dump(parts)
    except Exception as error:
        raise TypeError(
            f"The state of {_name(env)} can't be saved: {_culprit(layers, parts, references)}. {ADVICE}"
        ) from error
    return State(_names(layers), file.getvalue(), engines)


def set_state(env: Env, state: State) -> None:
    """
    Put an environment, with all its wrappers, back into a saved state.

    :param env: the one that the state was saved of, or another made in the same way
    :param state: is kept as it is, and can be restored again
    :raises ValueError: the state is of an environment with other wrappers or of another class
    """
    layers = _layers(env)
    if _names(layers) != state.layers:
        raise ValueError(f"A state of {' of '.join(state.layers)} can't be restored in {_name(env)}, which is {env}")
    for (index, name), engine in state.engines.items():
        # In place, for the environment, its renderer and NumPy's views into it hold on to the object.
        current = vars(layers[index])[name]
        if hasattr(engine, "qpos"):
            sys.modules["mujoco"].mj_copyData(current, current.model, engine)
        else:
            _restore_ale(current, engine)
    for layer, part in zip(layers, _Unpickler(io.BytesIO(state.pickled), layers).load(), strict=True):
        if _has_state(layer):
            layer.set_state(part)  # type: ignore[attr-defined]
            continue
        attributes, left, generators = part
        current = vars(layer)
        # A window or a font that has been opened since stays, too.
        free = [name for name, value in current.items() if name not in left and not _is_constant(value)]
        for name in free:
            if name not in attributes:
                del current[name]
        current.update({name: value for name, value in attributes.items() if name in free or name not in current})
        for name, saved in generators.items():
            for space, generator in zip(_spaces_in(_members(layer)[name]), saved, strict=True):
                space._np_random = generator


class Restorable(gym.Wrapper[Any, Any, Any, Any]):
    """
    Makes the state of an environment in another process reachable, for ``SubprocVecEnv``.

    It goes outside of all other wrappers, as ``make_vec_env(..., wrapper_class=Restorable)`` puts it, ``Monitor`` included;
    after wrappers of one's own, ``wrapper_class=lambda env: Restorable(AtariWrapper(env))``.

    :param env: to be wrapped
    """

    def get_state(self) -> State:
        """See :func:`get_state`; here it is the state of everything beneath, which fits the environment without this, too."""
        return get_state(self)

    def set_state(self, state: State) -> None:
        """See :func:`set_state`."""
        set_state(self, state)

    def attempt(self, function: Callable[..., Any], *args: Any) -> Any:
        """
        Call a function with this environment; an exception that left a worker of ``SubprocVecEnv`` would end its process.

        :param function: of the environment and ``args``
        :return: what it returns, or the exception that it raises
        """
        try:
            return function(self, *args)
        except Exception as error:
            # Others may lack in the main process, or not survive the pickling.
            return error if type(error) in (TypeError, ValueError) else RuntimeError(f"{type(error).__name__}: {error}")


def get_vec_state(vec_env: VecEnv, index: int) -> VecState:
    """
    Save the state of one environment of a ``VecEnv``, with what the ``VecEnv`` wrappers keep for it.

    That is the environment's row of every NumPy array, also those in a dict or in a frame stack, that is an attribute of a
    wrapper and has as many rows as there are environments: ``VecNormalize``'s returns, ``VecFrameStack``'s frames,
    ``VecMonitor``'s sums, and whatever wrappers of one's own keep like this. Running statistics of ``VecNormalize`` are left
    out. An array of a wrapper of one's own that has that length by chance is not told apart.

    :param vec_env: a ``DummyVecEnv``, or any whose environments are wrapped in :class:`Restorable`, with any wrappers
    :param index: of the environment
    :raises TypeError: the environment can't be reached, or something in it can't be copied
    """
    rows = [_rows(vars(wrapper), index, vec_env.num_envs) or {} for wrapper in _wrappers(vec_env)]
    return VecState(_call(vec_env, index, get_state), _names(_wrappers(vec_env)), tuple(rows))


def set_vec_state(vec_env: VecEnv, index: int, state: VecState) -> None:
    """
    Put one environment of a ``VecEnv`` back into a saved state; the others keep theirs.

    :param vec_env: the one that the state was saved of, or one made in the same way
    :param index: of the environment, the one that the state was saved of or another
    :param state: is kept as it is
    :raises TypeError: the environment can't be reached
    :raises ValueError: the state is of other wrappers or another environment
    """
    wrappers = list(_wrappers(vec_env))
    if _names(wrappers) != state.wrappers:
        raise ValueError(f"A state with the VecEnv wrappers {state.wrappers} can't be restored in {_names(wrappers)}")
    _call(vec_env, index, set_state, state.env)
    for wrapper, rows in zip(wrappers, state.rows, strict=True):
        vars(wrapper).update(_with_rows(vars(wrapper), rows, index, vec_env.num_envs))


@contextmanager
def branching(vec_env: VecEnv) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """
    Let steps within leave no trace in records: rows of ``Monitor``'s and ``VecMonitor``'s files and their counts of finished
    episodes, the running statistics of ``VecNormalize``, and ``VecEnv.reset_infos``.

    The states of the environments are the caller's to restore.

    :param vec_env: as for :func:`get_vec_state`
    :yield: a context manager, within which ``VecNormalize`` is as it was outside, to be saved by callbacks, say
    :raises TypeError: an environment can't be reached
    """
    base = vec_env.unwrapped
    normalisers = [(one, "training", one.training) for one in _wrappers(vec_env) if isinstance(one, VecNormalize)]
    for_now: list[tuple[Any, str, Any]] = [(base, "reset_infos", list(base.reset_infos))]
    for wrapper in _wrappers(vec_env):
        if isinstance(wrapper, VecNormalize):
            for_now.append((wrapper, "training", False))
        elif isinstance(wrapper, VecMonitor):
            for_now += [(wrapper, "results_writer", None), (wrapper, "episode_count", wrapper.episode_count)]
    with ExitStack() as stack:
        for owner, name, value in for_now:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        for index in range(vec_env.num_envs):
            _call(vec_env, index, _mute)
            stack.callback(_call, vec_env, index, _unmute)
        yield lambda: _attributes_at(normalisers)


@contextmanager
def _attributes_at(values: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    own = [(owner, name, getattr(owner, name)) for owner, name, _ in values]
    for owner, name, value in values:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in own:
            setattr(owner, name, value)


def check_restorable(vec_env: VecEnv, n_steps: int = 20) -> None:
    """
    Prove on the very environments that they come back to the bit, each in itself and in the next one: random steps, restored
    and taken again.

    Only what these steps show is proven: hidden state that resets alone depend on needs steps enough for an episode to end.

    :param vec_env: which has been reset; its environments and records are left in the state that they are in
    :param n_steps: to take, three times
    :raises TypeError: an environment can't be reached, or its state can't be saved
    :raises ValueError: an environment does not come back exactly
    """
    space = copy.deepcopy(vec_env.action_space)
    space.seed(0)
    actions = [np.stack([space.sample() for _ in range(vec_env.num_envs)]) for _ in range(n_steps)]
    with branching(vec_env):
        states = [get_vec_state(vec_env, index) for index in range(vec_env.num_envs)]
        try:
            first = [_outcomes(vec_env, action) for action in actions]
            for shift, where in ((0, ""), (1, " in another environment of the VecEnv")):
                _restore_all(vec_env, states[-shift:] + states[:-shift])
                for step, (action, outcomes) in enumerate(zip(actions, first, strict=True), 1):
                    again = _outcomes(vec_env, np.roll(action, shift, axis=0))
                    for index, outcome in enumerate(outcomes):
                        if outcome != again[(index + shift) % vec_env.num_envs]:
                            raise ValueError(
                                f"{_call(vec_env, index, _name)} does not come back exactly when its state is restored"
                                f"{where}: of the same {n_steps} actions, number {step} had another outcome. Part of its "
                                f"state is not in its attributes, or a wrapper's is not. {ADVICE}"
                            )
        finally:
            _restore_all(vec_env, states)


def _restore_all(vec_env: VecEnv, states: Sequence[VecState]) -> None:
    for index, state in enumerate(states):
        set_vec_state(vec_env, index, state)


def _outcomes(vec_env: VecEnv, actions: npt.NDArray[Any]) -> list[bytes]:
    """Of a step, by environment: in bytes, so that one NaN equals another and 0 does not equal -0."""
    observations, rewards, dones, infos = vec_env.step(actions)
    return [
        b"".join(_bits([_at(observations, index), rewards[index], dones[index], infos[index].get("terminal_observation")]))
        for index in range(vec_env.num_envs)
    ]


def _at(observations: Any, index: int) -> Any:
    if isinstance(observations, dict):
        return {key: value[index] for key, value in observations.items()}
    return [value[index] for value in observations] if isinstance(observations, tuple) else observations[index]


def _bits(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _bits(part)
    elif value is not None:
        yield np.asarray(value).tobytes()


class _Pickler(pickle.Pickler):
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


class _Unpickler(pickle.Unpickler):
    """Finds in the environment what :class:`_Pickler` wrote the place of."""

    def __init__(self, file: io.BytesIO, layers: Sequence[Env]) -> None:
        super().__init__(file)
        self.layers = layers

    def persistent_load(self, place: Place) -> Any:
        index, name = place
        return self.layers[index] if name is None else vars(self.layers[index]).get(name)


def _stack(env: Env) -> Iterator[Env]:
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, Restorable):
            yield env
        env = env.env
    yield env


def _layers(env: Env) -> list[Env]:
    """From outside to the first that answers for all beneath it, else to the base."""
    layers = []
    for layer in _stack(env):
        layers.append(layer)
        if _has_state(layer):
            break
    return layers


def _has_state(layer: Env) -> bool:
    """By signature, since gymnasium's MuJoCo environments have a ``set_state(qpos, qvel)``."""
    cls: Any = type(layer)
    if not (hasattr(cls, "get_state") and hasattr(cls, "set_state")):
        return False
    try:
        inspect.signature(cls.get_state).bind(layer)
        inspect.signature(cls.set_state).bind(layer, None)
    except TypeError:
        return False
    return True


def _members(layer: Env) -> dict[str, Any]:
    """Its attributes, and the spaces that it has from its class."""
    of_class = {name: getattr(type(layer), name, None) for name in ("action_space", "observation_space")}
    return {**{name: value for name, value in of_class.items() if isinstance(value, spaces.Space)}, **vars(layer)}


def _is_engine(value: Any) -> bool:
    kind = type(value)
    return (kind.__module__.split(".")[0], kind.__name__) in {("mujoco", "MjData"), ("ale_py", "ALEInterface")}


def _engine_state(engine: Any) -> Any:
    if hasattr(engine, "qpos"):
        return copy.copy(engine)
    state = engine.cloneState(include_rng=True)
    _restore_ale(engine, state)
    return state


def _restore_ale(ale: Any, state: Any) -> None:
    """
    The action that a sticky one repeats is in no clone, and nobody can read it. So it is made the no-op, here and where the
    state was saved, by as many as it takes for one of them to be heard.
    """
    stickiness = ale.getFloat("repeat_action_probability")
    if 0 < stickiness < 1:
        for _ in range(math.ceil(math.log(UNHEARD) / math.log(stickiness))):
            ale.act(0)
    ale.restoreState(state)


def _is_left_alone(layer: Env, name: str) -> bool:
    """By name, as the values are of common types."""
    if isinstance(layer, gym.Wrapper) and name == "env":
        return True
    if isinstance(layer, Monitor) and name in FINISHED_EPISODES:
        return True
    return name in ARGUMENTS or (name == "P" and type(layer).__module__.startswith("gymnasium.envs.toy_text"))


def _is_constant(value: Any) -> bool:
    if isinstance(value, (list, tuple, dict)):
        values = value.values() if isinstance(value, dict) else value
        return bool(value) and all(map(_is_constant, values))
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


def _spaces_in(value: Any) -> Iterator[spaces.Space[Any]]:
    """A space, a container's spaces, and those that they are made of, which have random generators of their own."""
    if isinstance(value, spaces.Space):
        yield value
        value = list(vars(value).values())
    if isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _spaces_in(part)


def _generator(space: spaces.Space[Any]) -> np.random.Generator:
    if vars(space)["_np_random"] is None:
        # Not by space.np_random, which in a space made of others would seed all of these anew.
        space._np_random, _ = seeding.np_random()
    return space.np_random


def _name(env: Env) -> str:
    base = env.unwrapped
    return base.spec.id if base.spec is not None else type(base).__name__


def _names(layers: Iterable[Any]) -> tuple[str, ...]:
    return tuple(type(layer).__qualname__ for layer in layers)


def _culprit(layers: Sequence[Env], parts: Sequence[Any], references: dict[int, Place]) -> str:
    """What can't be pickled, and why."""
    for layer, part in zip(layers, parts, strict=True):
        attributes = {"get_state()": part} if _has_state(layer) else part[0]
        for name, value in attributes.items():
            try:
                _Pickler(io.BytesIO(), references).dump(value)
            except Exception as error:
                return f"{name} of {type(layer).__name__}, a {type(value).__name__}, can't be copied ({error})"
    return "its attributes can't be copied together"


class _Muted(ResultsWriter):
    """Stands in for a monitor's writer, and knows what it was."""

    def __init__(self, monitor: Monitor) -> None:
        self.writer, self.finished = monitor.results_writer, len(monitor.episode_returns)

    def write_row(self, epinfo: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _mute(env: Env) -> None:
    for layer in _stack(env):
        if isinstance(layer, Monitor):
            layer.results_writer = _Muted(layer)


def _unmute(env: Env) -> None:
    for layer in _stack(env):
        if isinstance(layer, Monitor) and isinstance(layer.results_writer, _Muted):
            muted = layer.results_writer
            layer.results_writer = muted.writer
            for name in FINISHED_EPISODES:
                del getattr(layer, name)[muted.finished :]


def _call(vec_env: VecEnv, index: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of an environment where that is."""
    base = vec_env.unwrapped
    if isinstance(base, DummyVecEnv):
        return function(base.envs[index], *args)
    if not _is_reachable(base, index):
        raise TypeError(
            f"The environments of a {type(base).__name__} can only be restored if sb3_trpo_plus.states.Restorable is their "
            "outermost wrapper: make_vec_env(..., wrapper_class=Restorable)"
        )
    result = base.env_method("attempt", function, *args, indices=index)[0]
    if isinstance(result, Exception):
        raise result
    return result


def _is_reachable(base: VecEnv, index: int) -> bool:
    try:
        # Every wrapper has a class_name(), so it is the outermost that answers.
        wrapped = base.env_is_wrapped(Restorable, indices=index)[0]
        return wrapped and base.env_method("class_name", indices=index)[0] == Restorable.__name__
    except (AttributeError, NotImplementedError):
        return False


def _wrappers(vec_env: VecEnv) -> Iterator[VecEnvWrapper]:
    while isinstance(vec_env, VecEnvWrapper):
        yield vec_env
        vec_env = vec_env.venv


def _rows(value: Any, index: int, num_envs: int) -> Any:
    """One environment's rows of the arrays in a value, in dicts as they lie there; None if it has none."""
    if isinstance(value, StackedObservations):
        value = vars(value)
    if isinstance(value, dict):
        rows = {key: _rows(part, index, num_envs) for key, part in value.items()}
        return {key: row for key, row in rows.items() if row is not None} or None
    return copy.deepcopy(value[index]) if _has_rows(value, num_envs) else None


def _with_rows(value: Any, rows: Any, index: int, num_envs: int) -> Any:
    """The value with these rows in it, in new arrays: the ones there may be observations that have been handed out."""
    if isinstance(value, StackedObservations):
        vars(value).update(_with_rows(vars(value), rows, index, num_envs))
    elif isinstance(value, dict):
        value = copy.copy(value)
        value.update({key: _with_rows(value[key], row, index, num_envs) for key, row in rows.items() if key in value})
    elif _has_rows(value, num_envs):
        value = value.copy()
        value[index] = rows
    return value


def _has_rows(value: Any, num_envs: int) -> bool:
    return isinstance(value, np.ndarray) and value.shape[:1] == (num_envs,)
