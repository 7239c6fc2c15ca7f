"""All that is going on in a ``VecEnv``, for a training that goes on in another process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from sb3_trpo_plus.envs.pickling import Env
from sb3_trpo_plus.envs.states import class_names, layers_to_base
from sb3_trpo_plus.envs.vec_states import (
    VecState,
    call_in,
    get_vec_state,
    normalisers_of,
    set_vec_state,
    statistics_of,
    wrappers_of,
)

Array = npt.NDArray[Any]
Log = tuple[str, int]


@dataclass(frozen=True)
class VecSnapshot:
    """
    The states of all environments of a ``VecEnv``, without the running statistics of ``VecNormalize``.

    :param states: of each environment
    :param logs: paths and lengths in bytes of the files that each environment's ``Monitor`` writes
    :param episode_counts: of each ``VecMonitor``, from the outermost
    """

    states: Sequence[VecState]
    logs: Sequence[Sequence[Log]]
    episode_counts: Sequence[int]

    @classmethod
    def of(cls, vec_env: VecEnv) -> "VecSnapshot":
        """
        :param vec_env: has been reset; as for :func:`sb3_trpo_plus.states.get_vec_state`
        :raises TypeError: an environment can't be reached, or something in it can't be copied
        """
        indices = range(vec_env.num_envs)
        states = [get_vec_state(vec_env, index) for index in indices]
        logs = [call_in(vec_env, index, _logs) for index in indices]
        return cls(states, logs, [monitor.episode_count for monitor in _monitors(vec_env)])

    def restore(self, vec_env: VecEnv) -> None:
        """
        Let other environments go on as these. What a ``Monitor`` that appends to the same file wrote since is removed from it.

        :param vec_env: has been reset, and was made in the same way
        :raises TypeError: an environment can't be reached
        :raises ValueError: there are other wrappers or environments
        """
        for index, (state, logs) in enumerate(zip(self.states, self.logs, strict=True)):
            set_vec_state(vec_env, index, state)
            call_in(vec_env, index, _cut, logs)
        for monitor, count in zip(_monitors(vec_env), self.episode_counts, strict=True):
            monitor.episode_count = count


def layers(vec_env: VecEnv) -> tuple[str, ...]:
    """Class names of the wrappers, from the outermost, and of the ``VecEnv``."""
    return class_names([*wrappers_of(vec_env), vec_env.unwrapped])


def running_statistics(vec_env: VecEnv) -> dict[str, Array]:
    """Mean, variance and count of everything that each ``VecNormalize`` normalises, by dotted names."""
    return {f"{name}.{part}": np.asarray(getattr(rms, part)) for name, rms in _running(vec_env).items() for part in PARTS}


def set_running_statistics(vec_env: VecEnv, statistics: Mapping[str, Array]) -> None:
    """
    Replace the running statistics of each ``VecNormalize``.

    :param vec_env: with wrappers as that of :func:`running_statistics` has them
    :param statistics: what that returned
    """
    for name, rms in _running(vec_env).items():
        rms.mean, rms.var = statistics[f"{name}.mean"].copy(), statistics[f"{name}.var"].copy()
        rms.count = float(statistics[f"{name}.count"])


PARTS = ("mean", "var", "count")


def _running(vec_env: VecEnv) -> dict[str, RunningMeanStd]:
    pairs = enumerate(map(statistics_of, normalisers_of(vec_env)))
    return {f"{index}.{name}": rms for index, statistics in pairs for name, rms in statistics.items()}


def _monitors(vec_env: VecEnv) -> list[VecMonitor]:
    return [wrapper for wrapper in wrappers_of(vec_env) if isinstance(wrapper, VecMonitor)]


def _writers(env: Env) -> list[Any]:
    """The open files of an environment's monitors."""
    monitors = [layer for layer in layers_to_base(env) if isinstance(layer, Monitor)]
    return [one.results_writer.file_handler for one in monitors if one.results_writer is not None]


def _logs(env: Env) -> list[Log]:
    found = []
    for file in _writers(env):
        file.flush()
        path = Path(file.name).resolve()
        found.append((str(path), path.stat().st_size))
    return found


def _cut(env: Env, logs: Sequence[Log]) -> None:
    """Remove rows of episodes that ended after the snapshot, which will end again."""
    lengths = dict(logs)
    for file in _writers(env):
        path = Path(file.name).resolve()
        if "a" in file.mode and lengths.get(str(path), path.stat().st_size) < path.stat().st_size:
            file.flush()
            file.truncate(lengths[str(path)])
