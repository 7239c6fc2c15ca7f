"""Many environments in a few processes."""

import multiprocessing
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from multiprocessing.util import Finalize
from typing import Any, ClassVar

import cloudpickle
import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

from sb3_trpo_plus.envs.cores import n_cores
from sb3_trpo_plus.envs.vec.infos import Info, Infos
from sb3_trpo_plus.envs.vec.packing import unpack
from sb3_trpo_plus.envs.vec.process import WorkerProcess, end
from sb3_trpo_plus.envs.vec.shared import Array, Layout, Shared, anonymous_file
from sb3_trpo_plus.envs.vec.worker import STEP, Env, EnvFn


class WorkerVecEnv(VecEnv):
    """
    Steps environments in a few worker processes, each of which has a chunk of them: as many as there are cores, as a rule.

    What a step returns is what SB3's ``DummyVecEnv`` returns for the same environments, seeds and actions, to the bit.
    Actions, observations, rewards and dones go through shared memory; infos are only unpickled when they are read.

    An exception in an environment is raised in this process, with a note that names the environment; after a reset the
    environments can be used on. The workers end with this process, however that ends.

    :param env_fns: each makes an environment; pickled by cloudpickle unless processes are forked
    :param n_workers: number of processes, at most one for each environment; default: the cores that this process may use
    :param start_method: of ``multiprocessing``: "forkserver" (default where there is one), "spawn" or "fork". For the first
        two a script needs ``if __name__ == "__main__":``, as for SB3's ``SubprocVecEnv``
    :param timeout: seconds that a worker may take for an answer, a step of all its environments, say; None: for ever
    :raises OSError: on Windows
    """

    #: While environments are stepped, other threads of this process can run.
    leaves_interpreter_free: ClassVar[bool] = True

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        n_workers: int | None = None,
        start_method: str | None = None,
        timeout: float | None = None,
    ) -> None:
        n_envs = len(env_fns)
        if n_envs == 0:
            raise ValueError("env_fns is empty: give a function for each environment")
        if n_workers is not None and n_workers < 1:
            raise ValueError(f"n_workers must be at least 1, or None for as many as there are cores, not {n_workers}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, or None for no limit, not {timeout}")
        if not hasattr(socket, "AF_UNIX"):
            raise OSError("WorkerVecEnv shares memory in a way that Windows lacks: use SB3's SubprocVecEnv there")
        n_workers = min(n_cores() if n_workers is None else n_workers, n_envs)
        if start_method is None:
            start_method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        bounds = [number * n_envs // n_workers for number in range(n_workers + 1)]
        self._workers: list[WorkerProcess] = []
        # Also called when this is garbage and when the process exits, before multiprocessing ends its daemons; in this alone.
        self._end = Finalize(self, end, (self._workers,), exitpriority=1)
        self._timeout = timeout
        self.waiting = False
        try:
            for number in range(n_workers):
                indices = range(bounds[number], bounds[number + 1])
                functions = env_fns[indices.start : indices.stop]
                self._workers.append(WorkerProcess(number, indices, functions, start_method, self._workers))
            about, *_ = [worker.receive(None) for worker in self._workers]
            layout = Layout.of(n_envs, about.observation_space, about.action_space)
            file = anonymous_file(layout.size)
            try:
                self._shared = Shared(layout, file)
                for worker in self._workers:
                    worker.share(layout, file)
            finally:
                os.close(file)
            super().__init__(n_envs, about.observation_space, about.action_space)
        except BaseException:
            self.close()
            raise
        self.metadata = about.metadata

    def step_async(self, actions: Any) -> None:
        self._refuse_while_waiting()
        self._settle()
        shared = self._shared.actions
        if shared is not None and _is_like(actions, shared):
            shared[...] = actions
            requests = [STEP] * len(self._workers)
        else:
            # Environments get what DummyVecEnv would give them.
            requests = [_request("step", [actions[index] for index in worker.indices]) for worker in self._workers]
        for worker, request in zip(self._workers, requests, strict=True):
            worker.ask(request)
        self.waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        if not self.waiting:
            raise RuntimeError("step_wait() has no step to wait for: call step_async() first")
        self.waiting = False
        told: dict[int, Info] = {}
        others = []
        for worker in self._workers:
            infos, reset_infos, packed = worker.receive(self._timeout)
            told.update((index, pickle.loads(info)) for index, info in infos.items())
            for index, info in reset_infos.items():
                self.reset_infos[index] = pickle.loads(info)
            others.append(_Others(worker.indices, packed))
        return (
            self._observations(),
            self._shared.rewards.copy(),
            self._shared.dones.copy(),
            Infos(self.num_envs, told, lambda index: next(part for part in others if index in part.indices).infos[index]),
        )

    def reset(self) -> VecEnvObs:
        self._settle()
        for worker in self._workers:
            worker.ask(_request("reset", [self._seeds[i] for i in worker.indices], [self._options[i] for i in worker.indices]))
        infos = [pickle.loads(info) for worker in self._workers for info in worker.receive(self._timeout)]
        self.reset_infos[:] = infos
        # Seeds and options are used once.
        self._reset_seeds()
        self._reset_options()
        return self._observations()

    def close(self) -> None:
        """End the workers. One that has not closed its environments within 10 s is killed."""
        self.waiting = False
        self._end()

    def get_images(self) -> Sequence[Any]:
        if self.render_mode != "rgb_array":
            warnings.warn(f"Images are only made by environments whose render_mode is rgb_array, not {self.render_mode}")
            return [None] * self.num_envs
        return self._call(None, _render)

    def has_attr(self, attr_name: str) -> bool:
        return all(self._call(None, _has_attribute, attr_name))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Copies of an attribute of each environment.

        :param attr_name: looked up in the wrappers from the outermost, and in the environment
        :param indices: of the environments; None: all
        :raises AttributeError: an environment has none of this name
        :raises TypeError: it can't be pickled
        """
        return self._call(indices, _attribute, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        self._call(indices, _set_attribute, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        return self._call(indices, _call_method, method_name, method_args, method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        return self._call(indices, is_wrapped, wrapper_class)

    def call_in(self, index: int, function: Callable[..., Any], *args: Any) -> Any:
        """
        Call a function with one of the environments, in the process that it lives in.

        :param index: of the environment
        :param function: takes the environment, with its wrappers, and ``args``; pickled by cloudpickle
        :return: a copy of what the function returned
        :raises Exception: what the function raised
        """
        return self._call(index, function, *args)[0]

    def _call(self, indices: VecEnvIndices, function: Callable[..., Any], *args: Any) -> list[Any]:
        # As lists take them: also negative, and NumPy's.
        wanted = [range(self.num_envs)[index] for index in self._get_indices(indices)]
        self._refuse_while_waiting()
        asked = [(one, mine) for one in self._workers if (mine := [index for index in wanted if index in one.indices])]
        for worker, _ in asked:
            worker.settle(self._timeout)
        for worker, mine in asked:
            worker.ask(_request("call", mine, function, args))
        results: dict[int, bytes] = {}
        for worker, mine in asked:
            results.update(zip(mine, worker.receive(self._timeout), strict=True))
        return [pickle.loads(results[index]) for index in wanted]

    def _refuse_while_waiting(self) -> None:
        if self.waiting:
            raise RuntimeError("step_async() was called before: call step_wait() first, or the results of a step are lost")

    def _settle(self) -> None:
        self.waiting = False
        for worker in self._workers:
            worker.settle(self._timeout)

    def _observations(self) -> VecEnvObs:
        return dict_to_obs(self.observation_space, {key: part.copy() for key, part in self._shared.observations.items()})

    def __reduce__(self) -> Any:
        raise TypeError("A WorkerVecEnv can't be pickled or copied, since it has processes: make another one from its env_fns")


class _Others:
    """Infos of a worker's environments that are unpickled when the first of them is read."""

    def __init__(self, indices: range, packed: bytes) -> None:
        self.indices = indices
        self._packed = packed

    @cached_property
    def infos(self) -> dict[int, Info]:
        return unpack(self._packed)


def _request(method: str, *args: Any) -> bytes:
    """For a method of a worker's ``Chunk``."""
    return cloudpickle.dumps((method, args))  # type: ignore[no-any-return]


def _is_like(value: Any, array: Array) -> bool:
    return type(value) is np.ndarray and (value.dtype, value.shape) == (array.dtype, array.shape)


def _render(env: Env) -> Any:
    return env.render()


def _has_attribute(env: Env, name: str) -> bool:
    try:
        env.get_wrapper_attr(name)
    except AttributeError:
        return False
    return True


def _attribute(env: Env, name: str) -> Any:
    return env.get_wrapper_attr(name)


def _set_attribute(env: Env, name: str, value: Any) -> None:
    setattr(env, name, value)


def _call_method(env: Env, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return env.get_wrapper_attr(name)(*args, **kwargs)
