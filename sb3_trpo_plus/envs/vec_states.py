"""States of the environments of a ``VecEnv``."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from sb3_trpo_plus.envs.pickling import FINISHED_EPISODES, Env
from sb3_trpo_plus.envs.states import (
    ADVICE,
    Restorable,
    State,
    class_names,
    get_state,
    layers_to_base,
    name_of,
    set_state,
)
from sb3_trpo_plus.envs.vec.arrays import ArrayVecEnv, bits
from sb3_trpo_plus.envs.vec.arrays import rows as rows_of
from sb3_trpo_plus.envs.vec.workers import WorkerVecEnv


@dataclass(frozen=True)
class VecState:
    """
    State of one environment of a ``VecEnv``.

    :param env: state of the environment itself
    :param wrappers: class names of the ``VecEnvWrapper``, from the outermost
    :param rows: the arrays' rows for this environment, of each wrapper
    """

    env: State
    wrappers: tuple[str, ...]
    rows: tuple[dict[str, Any], ...] = field(repr=False)


def get_vec_state(vec_env: VecEnv, index: int) -> VecState:
    """
    Save the state of one environment of a ``VecEnv``, with what the ``VecEnv`` wrappers keep for it.

    That is the environment's row of every NumPy array with ``num_envs`` rows that is an attribute of a wrapper, also within a
    dict or a frame stack: ``VecNormalize``'s returns, ``VecFrameStack``'s frames, ``VecMonitor``'s sums, and what custom
    wrappers keep in this way, including arrays that have this length by chance. The running statistics of ``VecNormalize``
    are not part of it.

    :param vec_env: a ``DummyVecEnv`` or ``WorkerVecEnv``, or any whose environments are wrapped in :class:`Restorable`, with
        any wrappers
    :param index: of the environment
    :raises TypeError: the environment can't be reached, or something in it can't be copied
    """
    rows = [_rows(vars(wrapper), index, vec_env.num_envs) or {} for wrapper in wrappers_of(vec_env)]
    return VecState(call_in(vec_env, index, get_state), class_names(wrappers_of(vec_env)), tuple(rows))


def set_vec_state(vec_env: VecEnv, index: int, state: VecState) -> None:
    """
    Put one environment of a ``VecEnv`` back into a saved state; the others keep theirs.

    :param vec_env: the one that the state was saved of, or one made in the same way
    :param index: of the environment, the one that the state was saved of or another
    :param state: is not changed
    :raises TypeError: the environment can't be reached
    :raises ValueError: the state is of other wrappers or another environment
    """
    wrappers = list(wrappers_of(vec_env))
    if class_names(wrappers) != state.wrappers:
        raise ValueError(f"A state with the VecEnv wrappers {state.wrappers} can't be restored in {class_names(wrappers)}")
    call_in(vec_env, index, set_state, state.env)
    for wrapper, rows in zip(wrappers, state.rows, strict=True):
        vars(wrapper).update(_with_rows(vars(wrapper), rows, index, vec_env.num_envs))


@contextmanager
def branching(vec_env: VecEnv) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """
    Keep steps within a ``with`` block out of all records: files and episode counts of ``Monitor`` and ``VecMonitor``, running
    statistics of ``VecNormalize``, and ``VecEnv.reset_infos``.

    The caller must restore the states of the environments.

    :param vec_env: as for :func:`get_vec_state`
    :yield: function that returns a context manager, within which ``VecNormalize.training`` is as before, for callbacks that
        save it, say
    :raises TypeError: an environment can't be reached
    """
    base = vec_env.unwrapped
    normalisers = [(one, "training", one.training) for one in normalisers_of(vec_env)]
    for_now: list[tuple[Any, str, Any]] = [(base, "reset_infos", list(base.reset_infos))]
    for wrapper in wrappers_of(vec_env):
        if isinstance(wrapper, VecNormalize):
            for_now.append((wrapper, "training", False))
        elif isinstance(wrapper, VecMonitor):
            for_now += [(wrapper, "results_writer", None), (wrapper, "episode_count", wrapper.episode_count)]
    with ExitStack() as stack:
        for owner, name, value in for_now:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        for index in range(vec_env.num_envs):
            call_in(vec_env, index, _mute)
            stack.callback(call_in, vec_env, index, _unmute)
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
    Test that restored environments repeat themselves bit by bit: random steps are taken, and taken again after the states were
    restored in the same environments, and then in their neighbours.

    Only these steps are tested: hidden state that only resets depend on shows if there are enough of them to end an episode.

    :param vec_env: has been reset; afterwards the states of its environments and its records are as before
    :param n_steps: number of steps, which are taken three times
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
                                f"{call_in(vec_env, index, name_of)} does not come back exactly when its state is restored"
                                f"{where}: of the same {n_steps} actions, number {step} had another outcome. Part of its "
                                f"state is not in its attributes, or a wrapper's is not. {ADVICE}"
                            )
        finally:
            _restore_all(vec_env, states)


def _restore_all(vec_env: VecEnv, states: Sequence[VecState]) -> None:
    for index, state in enumerate(states):
        set_vec_state(vec_env, index, state)


def _outcomes(vec_env: VecEnv, actions: npt.NDArray[Any]) -> list[bytes]:
    """Outcome of a step for each environment, as bytes, in which NaN equals NaN, and 0 differs from -0."""
    observations, rewards, dones, infos = vec_env.step(actions)
    return [
        b"".join(bits([rows_of(observations, index), rewards[index], dones[index], infos[index].get("terminal_observation")]))
        for index in range(vec_env.num_envs)
    ]


class _Muted(ResultsWriter):
    """Replaces a monitor's writer for a while, and remembers it and the number of finished episodes."""

    def __init__(self, monitor: Monitor) -> None:
        self.writer, self.finished = monitor.results_writer, len(monitor.episode_returns)

    def write_row(self, epinfo: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _mute(env: Env) -> None:
    for layer in layers_to_base(env):
        if isinstance(layer, Monitor):
            layer.results_writer = _Muted(layer)


def _unmute(env: Env) -> None:
    for layer in layers_to_base(env):
        if isinstance(layer, Monitor) and isinstance(layer.results_writer, _Muted):
            muted = layer.results_writer
            layer.results_writer = muted.writer
            for name in FINISHED_EPISODES:
                del getattr(layer, name)[muted.finished :]


def call_in(vec_env: VecEnv, index: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function with one of the environments, in the process that it lives in."""
    base = vec_env.unwrapped
    if isinstance(base, DummyVecEnv):
        return function(base.envs[index], *args)
    if isinstance(base, WorkerVecEnv):
        return base.call_in(index, function, *args)
    _check_reachable(base, index)
    result = base.env_method("attempt", function, *args, indices=index)[0]
    if isinstance(result, Exception):
        raise result
    return result


def _check_reachable(base: VecEnv, index: int) -> None:
    """Raise TypeError, with what to do about it, if the environment's outermost wrapper is not :class:`Restorable`."""
    kind = type(base).__name__
    try:
        if isinstance(base, ArrayVecEnv) and base.monitor:
            raise TypeError("it keeps the statistics of the episodes itself, which can't be put back")
        # All gymnasium wrappers have class_name(), so the outermost one's is called.
        wrapped = base.env_is_wrapped(Restorable, indices=index)[0]
        if wrapped and base.env_method("class_name", indices=index)[0] == Restorable.__name__:
            return
    except Exception as error:
        raise TypeError(
            f"A {kind} gives no access to its environments ({type(error).__name__}: {error}), so that they can't be restored: "
            "use SB3's DummyVecEnv, sb3_trpo_plus.envs.vec.WorkerVecEnv, or SB3's SubprocVecEnv with "
            "sb3_trpo_plus.states.Restorable as their outermost wrapper"
        ) from error
    raise TypeError(
        f"The environments of a {kind} can only be restored if sb3_trpo_plus.states.Restorable is their outermost wrapper: "
        "make_vec_env(..., wrapper_class=Restorable), with RL Zoo -params "
        "env_wrapper:\"'sb3_trpo_plus.states.Restorable'\", as the last of a list if there are others; or use a DummyVecEnv"
    )


def wrappers_of(vec_env: VecEnv) -> Iterator[VecEnvWrapper]:
    while isinstance(vec_env, VecEnvWrapper):
        yield vec_env
        vec_env = vec_env.venv


def normalisers_of(vec_env: VecEnv) -> list[VecNormalize]:
    """From the outermost."""
    return [wrapper for wrapper in wrappers_of(vec_env) if isinstance(wrapper, VecNormalize)]


def statistics_of(normaliser: VecNormalize) -> dict[str, RunningMeanStd]:
    """The running statistics of a ``VecNormalize``: ``ret_rms``, and ``obs_rms.KEY`` for each part of the observations."""
    of_observations: Any = getattr(normaliser, "obs_rms", None)
    keyed = of_observations if isinstance(of_observations, dict) else {"": of_observations}
    found = {"ret_rms": normaliser.ret_rms, **{f"obs_rms.{key}": one for key, one in keyed.items()}}
    return {name: one for name, one in found.items() if isinstance(one, RunningMeanStd)}


def _rows(value: Any, index: int, num_envs: int) -> Any:
    """One environment's row of an array, or the rows of the arrays in a dict or frame stack, as a dict; None if none."""
    if isinstance(value, StackedObservations):
        value = vars(value)
    if isinstance(value, dict):
        rows = {key: _rows(part, index, num_envs) for key, part in value.items()}
        return {key: row for key, row in rows.items() if row is not None} or None
    return copy.deepcopy(value[index]) if _has_rows(value, num_envs) else None


def _with_rows(value: Any, rows: Any, index: int, num_envs: int) -> Any:
    """The value with these rows replaced, in new arrays, since the present ones may have been returned as observations."""
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
