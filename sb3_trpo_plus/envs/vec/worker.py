"""What a worker process of ``WorkerVecEnv`` does: it steps its environments one after another."""

import os
import pickle
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
import torch as th
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from sb3_trpo_plus.envs.vec.infos import Info
from sb3_trpo_plus.envs.vec.packing import pack
from sb3_trpo_plus.envs.vec.shared import Array, Shared

Env = gym.Env[Any, Any]
EnvFn = Callable[[], Env]
# The request for a step with the actions in shared memory; all others are a name of a method of Chunk, and its arguments.
STEP = b"step"
# How long a worker looks for the next request before it sleeps, in seconds.
AWAKE = 3e-4
# How long it may take to close the environments, in seconds.
PATIENCE = 10.0


# See Chunk.step().
Outcome = tuple[dict[int, bytes], dict[int, bytes], bytes]


class About(NamedTuple):
    """What the main process has to know of a worker's environments: of its first one, that is."""

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """
    An exception on its way to the main process.

    :param index: of the environment that raised it; None if none did
    :param pickled: None if it can't be
    :param words: its class and its message
    :param trace: as Python prints it
    """

    index: int | None
    pickled: bytes | None
    words: str
    trace: str

    @classmethod
    def of(cls, error: Exception, index: int | None) -> "Failure":
        try:
            pickled = pickle.dumps(error)
            # Exceptions whose constructor takes other arguments than they keep are only found out here.
            pickle.loads(pickled)
        except Exception:
            pickled = None
        words = "".join(traceback.format_exception_only(type(error), error)).strip()
        return cls(index, pickled, words, "".join(traceback.format_exception(type(error), error, error.__traceback__)))


class Chunk:
    """
    Some of the environments, whose infos and indices are those of the whole ``VecEnv``.

    :param env_fns: make the environments; or these functions, pickled
    :param first: index of the first one
    """

    def __init__(self, env_fns: bytes | Sequence[EnvFn], first: int) -> None:
        self.envs: list[Env] = []
        #: Index within the chunk of the environment that is at work; None if none is
        self.at: int | None = None
        self.first = first
        self._env_fns = env_fns

    def make(self) -> About:
        """Make the environments."""
        env_fns = cloudpickle.loads(self._env_fns) if isinstance(self._env_fns, bytes) else self._env_fns
        for self.at, function in enumerate(env_fns):
            self.envs.append(_patch_env(function()))
        if len({id(env.unwrapped) for env in self.envs}) < len(self.envs):
            raise ValueError(
                "Functions that make environments returned the same one twice: instead of `lambda: env` give functions that "
                "make a new one at each call, `lambda: gym.make(...)`, say"
            )
        return About(self.envs[0].observation_space, self.envs[0].action_space, self.envs[0].metadata)

    def share(self, shared: Shared) -> None:
        """:param shared: of all environments; those of the chunk have the rows from ``first`` on"""
        rows = slice(self.first, self.first + len(self.envs))
        self._observations = [(key, array[rows]) for key, array in shared.observations.items()]
        self._actions: Array | None = None if shared.actions is None else shared.actions[rows]
        self._rewards, self._dones = shared.rewards[rows], shared.dones[rows]

    def step(self, actions: Sequence[Any] | None = None) -> Outcome:
        """
        A step of each environment, and a reset of those whose episode it ends, as ``DummyVecEnv`` does it.

        :param actions: one for each environment; None: those in shared memory
        :return: by index, the infos of environments whose episode ended or that have statistics, and those of resets, each
            pickled; and the infos of all other environments, packed
        """
        if actions is None:
            assert self._actions is not None
            # Environments may keep their action.
            actions = list(self._actions.copy())
        told, reset_infos, others = {}, {}, {}
        rewards, dones = self._rewards, self._dones
        for index, env in enumerate(self.envs):
            self.at = index
            observation, rewards[index], terminated, truncated, info = env.step(actions[index])
            dones[index] = done = bool(terminated or truncated)
            info["TimeLimit.truncated"] = truncated and not terminated
            if done:
                info["terminal_observation"] = observation
                # Pickled before the reset, which may write into both.
                told[self.first + index] = _pickled(info)
                observation, reset_info = env.reset()
                reset_infos[self.first + index] = _pickled(reset_info)
            elif "episode" in info:
                told[self.first + index] = _pickled(info)
            else:
                others[self.first + index] = info
            self._save(index, observation)
        return told, reset_infos, self._packed(others)

    def reset(self, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]) -> list[bytes]:
        """Reset each environment, and return the infos, each pickled."""
        infos = []
        for index, (env, seed, option) in enumerate(zip(self.envs, seeds, options, strict=True)):
            self.at = index
            observation, info = env.reset(seed=seed, **({"options": option} if option else {}))
            infos.append(_pickled(info))
            self._save(index, observation)
        return infos

    def call(self, indices: Iterable[int], function: Callable[..., Any], args: Sequence[Any]) -> list[bytes]:
        """
        :param indices: of environments, of the whole ``VecEnv``
        :param function: takes one of these environments, and ``args``
        :return: what the function returned for each, pickled
        """
        results = []
        for index in indices:
            self.at = index - self.first
            results.append(_pickled(function(self.envs[self.at], *args)))
        return results

    def close(self) -> None:
        """Close all environments, also if one of them raises."""
        with ExitStack() as stack:
            for env in self.envs:
                stack.callback(env.close)

    def _save(self, index: int, observation: Any) -> None:
        for key, rows in self._observations:
            rows[index] = observation if key is None else observation[key]

    def _packed(self, infos: Mapping[int, Info]) -> bytes:
        try:
            return pack(infos)
        except Exception:
            # Whose can't be?
            for index, info in infos.items():
                self.at = index - self.first
                _pickled(info)
            raise


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise TypeError(f"{value!r:.200} can't be pickled, and so not be sent to the main process: {error}") from error


def _answer(chunk: Chunk, request: bytes) -> bytes:
    chunk.at = None
    try:
        if request == STEP:
            return pickle.dumps(chunk.step())
        name, args = cloudpickle.loads(request)
        return pickle.dumps(getattr(chunk, name)(*args))
    except Exception as error:
        return pickle.dumps(Failure.of(error, None if chunk.at is None else chunk.first + chunk.at))


def _await(connection: Connection) -> None:
    """
    Wait a while for a request, awake.

    The next step mostly comes within this time, and to be woken takes a process 0.06 ms, and longer on a virtual machine: this
    makes the rollouts of 32 HalfCheetahs in two processes on two cores a tenth shorter.
    """
    poll, until = select.poll(), time.perf_counter() + AWAKE
    poll.register(connection.fileno(), select.POLLIN)
    while not poll.poll(0) and time.perf_counter() < until:
        pass


def _end_after(connection: int) -> None:
    """End this process a while after the main process has hung up: an environment may hang, or take for ever to close."""
    poll = select.poll()
    # Reports that, and nothing else.
    poll.register(connection, 0)
    poll.poll()
    time.sleep(PATIENCE)
    os._exit(1)


def work(connection: Connection, others: Sequence[Connection], env_fns: bytes | Sequence[EnvFn], first: int) -> None:
    """
    Serve the main process until it closes its end of the connection, or is no more.

    :param connection: to the main process
    :param others: ends of connections that were inherited, and are closed: else they would stay open without a main process
    :param env_fns: as in :class:`Chunk`
    :param first: index of the first environment
    """
    # A terminal or a cluster sends these to all processes. What they are to end, and when, is the main process's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for one in others:
        one.close()
    # There is a worker for each core.
    os.environ["OMP_NUM_THREADS"] = "1"
    th.set_num_threads(1)
    threading.Thread(target=_end_after, args=(connection.fileno(),), daemon=True).start()
    chunk = Chunk(env_fns, first)
    try:
        connection.send_bytes(_answer(chunk, pickle.dumps(("make", ()))))
        layout = pickle.loads(connection.recv_bytes())
        file = reduction.recv_handle(connection)
        chunk.share(Shared(layout, file))
        os.close(file)
        while True:
            _await(connection)
            connection.send_bytes(_answer(chunk, connection.recv_bytes()))
    except (EOFError, ConnectionError):
        pass
    finally:
        chunk.close()
