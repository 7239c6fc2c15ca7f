"""SB3's ``VecEnv`` over environments that step together and answer in arrays."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_trpo_plus.envs.vec.episodes import Episodes
from sb3_trpo_plus.envs.vec.infos import Info, Infos

Wrapper: TypeAlias = gym.Wrapper[Any, Any, Any, Any]
#: By key the values of all environments, with the mask ``_key`` of those that have one unless all have
ArrayInfos = Mapping[str, Any]


class Step(NamedTuple):
    """
    What a step of all environments gives.

    :param observations: with a row for each environment, which nobody else will write to
    :param rewards: of any floating type
    :param terminated: bool
    :param truncated: bool
    :param infos: which nobody else will write to
    """

    observations: VecEnvObs
    rewards: npt.NDArray[Any]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    infos: ArrayInfos


class Endings(NamedTuple):
    """
    Of each environment whose episode ended, in their order.

    :param observations: the last ones
    :param infos: of the last step
    :param reset_infos: of the reset after it
    """

    observations: list[Any]
    infos: list[Info]
    reset_infos: list[Info]


class ArrayVecEnv(VecEnv):
    """
    What is the same for all environments that answer in arrays: SB3's contract, without Python for each environment in a step.

    :param num_envs: number of environments
    :param observation_space: of one environment
    :param action_space: of one environment
    :param monitor: whether infos have the statistics of finished episodes, as those of ``Monitor`` do
    :param monitor_file: where to write these statistics; None: nowhere
    :param max_episode_steps: after which an episode is truncated; None: the environments see to that
    """

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        monitor: bool,
        monitor_file: str | None,
        max_episode_steps: int | None = None,
    ) -> None:
        super().__init__(num_envs, observation_space, action_space)
        env_id = getattr(self.get_attr("spec", 0)[0], "id", None) if monitor_file and monitor else None
        self.episodes = Episodes(num_envs, monitor_file if monitor else None, env_id)
        self.monitor = monitor
        self._max_episode_steps = max_episode_steps
        self._closed = False

    @abstractmethod
    def _reset_all(self, seed: int | None, options: dict[str, Any] | None) -> tuple[VecEnvObs, ArrayInfos]:
        """
        :param seed: of the first environment, the others have the next ones; None: no new seeds
        :param options: for each environment; None: none
        :return: first observations, which nobody else will write to, and infos
        """

    @abstractmethod
    def _step_all(self, actions: npt.NDArray[Any]) -> Step:
        """Step every environment."""

    @abstractmethod
    def _begin_again(self, step: Step, ended: npt.NDArray[np.intp]) -> Endings:
        """
        Reset the environments whose episode ended.

        :param step: the last step; the first observations of the next episodes take their rows in its observations
        :param ended: their indices
        """

    @abstractmethod
    def _close(self) -> None:
        """Close the environments, once."""

    def reset(self) -> VecEnvObs:
        observations, infos = self._reset_all(self._seeds[0], self._options[0] or None)
        self._reset_seeds()
        self._reset_options()
        self.episodes.begin()
        self.reset_infos = [info_at(infos, index) for index in range(self.num_envs)]
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        step = self._step_all(self._actions)
        self.episodes.add(step.rewards)
        truncated = step.truncated
        if self._max_episode_steps is not None:
            truncated = truncated | (self.episodes.lengths >= self._max_episode_steps)
        dones = step.terminated | truncated
        ended = dones.nonzero()[0]
        told = self._end(step, ended) if ended.size else {}
        rewards = np.array(step.rewards, np.float32)
        return step.observations, rewards, dones, Infos(self.num_envs, told, partial(_running, step.infos))

    def _end(self, step: Step, ended: npt.NDArray[np.intp]) -> dict[int, Info]:
        """Reset the environments whose episode ended, and return their infos."""
        episodes = self.episodes.end(ended)
        endings = self._begin_again(step, ended)
        told = {}
        for place, index in enumerate(ended.tolist()):
            self.reset_infos[index] = endings.reset_infos[place]
            told[index] = info = endings.infos[place]
            if self.monitor:
                info["episode"] = episodes[place]
            # All that ended ended by truncation, or were terminated.
            info["TimeLimit.truncated"] = not step.terminated[index]
            info["terminal_observation"] = endings.observations[place]
        return told

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """
        :raises ValueError: the options of the environments are not the same
        """
        if isinstance(options, list) and any(one != options[0] for one in options):
            raise ValueError(
                f"set_options: the environments of a {type(self).__name__} are reset together and have the same options, "
                "but these differ. Give one dict, or use a DummyVecEnv"
            )
        super().set_options(options)

    def env_is_wrapped(self, wrapper_class: type[Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether the environments are wrapped in this class; with ``monitor`` they are as good as wrapped in ``Monitor``."""
        return [self.monitor and wrapper_class is Monitor for _ in self._get_indices(indices)]

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.episodes.close()
            self._close()


def _running(infos: ArrayInfos, index: int) -> Info:
    return {**info_at(infos, index), "TimeLimit.truncated": False}


def info_at(infos: ArrayInfos, index: int) -> Info:
    """
    The info of one environment.

    :param infos: of all environments, as ``gymnasium.vector`` joins them
    :param index: of the environment
    """
    if not infos:
        return {}
    masks = {f"_{key}" for key in infos}
    info = {}
    for key, values in infos.items():
        mask = infos.get(f"_{key}")
        if key not in masks and (mask is None or mask[index]):
            info[key] = info_at(values, index) if isinstance(values, dict) else values[index] if np.ndim(values) else values
    return info


def own(space: spaces.Space[Any], observations: Any, copy: bool = True) -> Any:
    """
    Observations as a space has them: arrays of its dtypes, in a dict, in a tuple, or one.

    :param space: of one observation
    :param observations: one, or one for each environment
    :param copy: False: only where the dtype is another
    """
    if isinstance(space, spaces.Dict):
        return {key: own(part, observations[key], copy) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(own(part, its, copy) for part, its in zip(space.spaces, observations, strict=True))
    return np.array(observations, space.dtype) if copy else np.asarray(observations, space.dtype)


def rows(observations: Any, index: Any) -> Any:
    """
    One environment's observations, or those of several.

    :param observations: of all environments
    :param index: of an environment, or an array of indices
    """
    if isinstance(observations, dict):
        return {key: part[index] for key, part in observations.items()}
    return tuple(part[index] for part in observations) if isinstance(observations, tuple) else observations[index]


def put_rows(observations: Any, indices: npt.NDArray[np.intp], those: Any) -> None:
    """
    Write observations of some environments among those of all.

    :param observations: of all environments
    :param indices: of the environments
    :param those: their observations
    """
    if isinstance(observations, dict):
        for key, part in observations.items():
            part[indices] = those[key]
    elif isinstance(observations, tuple):
        for part, its in zip(observations, those, strict=True):
            part[indices] = its
    else:
        observations[indices] = those


def bits(value: Any) -> Iterator[bytes]:
    """
    The bytes of arrays and numbers, in which NaN equals NaN, and 0 differs from -0.

    :param value: an array or a number, or lists, tuples and dicts of them, in which None counts for nothing
    """
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from bits(part)
    elif value is not None:
        yield np.asarray(value).tobytes()
