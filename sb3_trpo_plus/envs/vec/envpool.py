"""EnvPool's environments, stepped by threads in C++, as an SB3 ``VecEnv``."""

import difflib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs

from sb3_trpo_plus.envs.cores import n_cores
from sb3_trpo_plus.envs.vec.arrays import ArrayInfos, ArrayVecEnv, Endings, Step, info_at, own, put_rows, rows

# Families of environments for which the limit on steps is nothing but that. In others rewards or observations depend on it.
ONLY_A_LIMIT = (
    "envpool.atari", "envpool.box2d", "envpool.classic_control", "envpool.mujoco.dmc", "envpool.mujoco.gym",
    "envpool.mujoco.metaworld", "envpool.mujoco.robotics", "envpool.procgen", "envpool.toy_text",
)  # fmt: skip
# Gymnasium's observations have the forces of contacts in them, EnvPool's have zeros unless it is asked for more.
WITH_CONTACTS = ("Humanoid-v4", "HumanoidStandup-v4")
# Never reached, and EnvPool may add to it within 32 bits.
NO_LIMIT = 2**30
# They tell which environment a row is of: here those are all, in order.
OF_ROWS = ("env_id", "players")


class EnvPoolVecEnv(ArrayVecEnv):
    """
    Environments of EnvPool as an SB3 ``VecEnv``.

    EnvPool calls an episode that is terminated by its last allowed step truncated alone. Therefore it is given no limit, and
    the limit is kept here. In MiniGrid, ViZDoom and others whose rewards or observations depend on the limit it stays
    EnvPool's.

    Seeds are fixed when EnvPool makes its environments: after :meth:`seed` the next :meth:`reset` makes them anew. Environment
    i gets seed + i, modulo 2^31. The environments themselves are in C++, and have no attributes or methods.

    :param task_id: EnvPool's name of the environment, see ``envpool.list_all_envs()``
    :param num_envs: number of environments
    :param seed: of the first environment; None: one at random, from NumPy's global generator
    :param num_threads: that step the environments; None: as many as the process may use cores, at most ``num_envs``
    :param max_episode_steps: after which an episode is truncated; None: the task's
    :param monitor: whether ``info["episode"]`` has return, length and time of an episode at its end, as from ``Monitor``
    :param monitor_file: where to write these, as ``Monitor`` does; None: nowhere
    :param kwargs: of the task, as for ``envpool.make``
    :raises ImportError: EnvPool is not installed
    :raises TypeError: the task has no such option
    :raises ValueError: EnvPool has no such task, or it is one for several players
    """

    leaves_interpreter_free: ClassVar[bool] = True

    def __init__(
        self,
        task_id: str,
        num_envs: int = 1,
        seed: int | None = None,
        num_threads: int | None = None,
        max_episode_steps: int | None = None,
        monitor: bool = True,
        monitor_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        envpool = _envpool()
        _check_task(envpool, task_id)
        if "batch_size" in kwargs:
            raise ValueError("batch_size: a step of a VecEnv steps all environments; num_envs is their number")
        if max_episode_steps is not None:
            if max_episode_steps < 1:
                raise ValueError(f"max_episode_steps must be at least 1, not {max_episode_steps}")
            kwargs["max_episode_steps"] = max_episode_steps
        if task_id in WITH_CONTACTS:
            kwargs.setdefault("post_constraint", True)
        threads = min(num_envs, n_cores()) if num_threads is None else num_threads
        self._make = envpool.make_gymnasium
        self._arguments = {"task_id": task_id, "num_envs": num_envs, "num_threads": threads, **kwargs}
        try:
            self._spec = envpool.make_spec(**self._arguments)
        except TypeError as error:
            options = ", ".join(sorted(envpool.make_spec(task_id).config._fields))
            raise TypeError(f"EnvPool's {task_id} takes no such option ({error}). It has {options}") from error
        with _casting_bounds():
            observation_space, action_space = _mended(self._spec.observation_space), self._spec.action_space
            if isinstance(action_space, spaces.Box) and action_space.dtype == np.float64:
                # As Gymnasium's, so that what was trained in one of them can be loaded with the other. EnvPool casts actions.
                action_space = spaces.Box(action_space.low, action_space.high, dtype=np.float32)
        if self._spec.config.max_num_players != 1:
            raise ValueError(f"task_id: {task_id} is for {self._spec.config.max_num_players} players, and SB3 has one")
        own_limit = None
        if envpool.registration.registry.specs[task_id][0] in ONLY_A_LIMIT:
            own_limit = self._spec.config.max_episode_steps
            self._arguments["max_episode_steps"] = NO_LIMIT
        self._pool: Any = None
        self._actions_shape = (num_envs, *action_space.shape)
        super().__init__(num_envs, observation_space, action_space, monitor, monitor_file, own_limit)
        self.seed(seed)

    def _reset_all(self, seed: int | None, options: dict[str, Any] | None) -> tuple[VecEnvObs, ArrayInfos]:
        if seed is not None:
            self._pool = None  # its threads end before others start
            self._pool = self._make(**self._arguments, seed=seed % (2**31 - self.num_envs))
            with _casting_bounds():
                self._pool.observation_space  # noqa: B018  # is made once, and looked at in each step
        observations, infos = self._made().reset()
        return own(self.observation_space, observations, copy=False), _of_environments(infos)

    def _step_all(self, actions: npt.NDArray[Any]) -> Step:
        pool, actions = self._made(), np.asarray(actions)
        if actions.shape != self._actions_shape:
            # EnvPool would end the process.
            raise ValueError(f"actions must have the shape {self._actions_shape}, not {actions.shape}")
        observations, rewards, terminated, truncated, infos = pool.step(actions)
        observations = own(self.observation_space, observations, copy=False)
        return Step(observations, rewards, terminated, truncated, _of_environments(infos))

    def _begin_again(self, step: Step, ended: npt.NDArray[np.intp]) -> Endings:
        first, infos = self._pool.reset(ended.astype(np.int32))
        last, reset_infos = rows(step.observations, ended), _of_environments(infos)
        put_rows(step.observations, ended, first)
        places = range(ended.size)
        return Endings(
            [rows(last, place) for place in places],
            [info_at(step.infos, index) for index in ended],
            [info_at(reset_infos, place) for place in places],
        )

    def _made(self) -> Any:
        if self._pool is None:
            raise RuntimeError("There are no environments before reset, nor after close")
        return self._pool

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """
        :raises ValueError: there are any options, which EnvPool's resets have not
        """
        super().set_options(options)
        if any(self._options):
            self._reset_options()
            raise ValueError(f"set_options: the resets of EnvPool's environments have no options, but were given {options}")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        ``render_mode`` and ``spec`` (EnvPool's), the same for all environments.

        :raises AttributeError: any other name
        """
        if attr_name not in ("render_mode", "spec"):
            raise AttributeError(f"get_attr({attr_name!r}): EnvPool's environments have render_mode and spec alone")
        value = self._spec if attr_name == "spec" else self._arguments.get("render_mode")
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :raises AttributeError: always
        """
        raise AttributeError(f"set_attr({attr_name!r}): environments of EnvPool have no attributes that could be set")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """
        :raises AttributeError: always
        """
        raise AttributeError(f"env_method({method_name!r}): environments of EnvPool have no methods")

    def get_images(self) -> Sequence[npt.NDArray[Any] | None]:
        if self.render_mode != "rgb_array":
            warnings.warn(f'The render mode is {self.render_mode}, but only "rgb_array" gives images.')
            return [None for _ in range(self.num_envs)]
        return list(self._made().render(np.arange(self.num_envs)))

    def _close(self) -> None:
        self._pool = None


def _envpool() -> ModuleType:
    try:
        import envpool
    except ImportError as error:
        raise ImportError(
            "EnvPoolVecEnv needs EnvPool, which has wheels for Python 3.11 and later: pip install 'sb3-trpo-plus[envpool]'"
        ) from error
    return envpool


def _check_task(envpool: ModuleType, task_id: str) -> None:
    known = envpool.list_all_envs()
    if task_id not in known:
        near = difflib.get_close_matches(task_id, known, n=5)
        advice = f"near it are {', '.join(near)}" if near else "envpool.list_all_envs() has those that there are"
        raise ValueError(f"task_id: EnvPool has no environment {task_id!r}; {advice}")


@contextmanager
def _casting_bounds() -> Iterator[None]:
    """EnvPool's bounds are in double precision whatever the space is in, of which Gymnasium warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*precision lowered by casting.*")
        yield


def _mended(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The space with infinite bounds where EnvPool means them: it has the smallest and largest positive number of the type."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _mended(part) for key, part in space.spaces.items()})
    if not (isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)):
        return space
    limits = np.finfo(np.dtype(space.dtype))
    unbounded = (space.low == limits.tiny) & (space.high == limits.max)
    low, high = np.where(unbounded, -np.inf, space.low), np.where(unbounded, np.inf, space.high)
    return spaces.Box(low.astype(space.dtype), high.astype(space.dtype), dtype=np.dtype(space.dtype).type)


def _of_environments(infos: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in infos.items() if key not in OF_ROWS}
