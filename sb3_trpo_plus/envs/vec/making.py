"""Many environments by their name, in the manner of SB3's ``make_vec_env``."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env

if TYPE_CHECKING:
    from sb3_trpo_plus.envs.vec.envpool import EnvPoolVecEnv
    from sb3_trpo_plus.envs.vec.gymnasium import GymnasiumVecEnv
    from sb3_trpo_plus.envs.vec.workers import WorkerVecEnv

Env = gym.Env[Any, Any]


def make_gymnasium_vec(
    env_id: str | Callable[..., Env],
    n_envs: int = 1,
    seed: int | None = None,
    vectorization_mode: str | None = None,
    vector_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> "GymnasiumVecEnv":
    """
    Environments in one of Gymnasium's vector environments.

    :param env_id: of the environment, or a function that makes one
    :param n_envs: number of environments
    :param seed: of the first environment, the others get the next ones; None: one at random, from NumPy's global generator
    :param vectorization_mode: ``"vector_entry_point"`` for the vector environment that is registered for this id (there is
        one for ``CartPole-v1``), ``"sync"`` for ``SyncVectorEnv``, ``"async"`` for ``AsyncVectorEnv``; None: the registered
        one, and ``"sync"`` if there is none or if it has not what is asked for
    :param vector_kwargs: of ``SyncVectorEnv`` or ``AsyncVectorEnv``
    :param kwargs: of SB3's ``make_vec_env``, which makes the environments for the last two; a registered one takes
        ``env_kwargs`` and ``monitor_dir`` alone
    :raises ValueError: ``vectorization_mode`` is none of these, or has not what ``kwargs`` or ``vector_kwargs`` ask for
    """
    from sb3_trpo_plus.envs.vec.gymnasium import GymnasiumVecEnv

    only_single = sorted(name for name, value in kwargs.items() if value and name not in ("env_kwargs", "monitor_dir"))
    only_single += ["vector_kwargs"] if vector_kwargs else []
    if vectorization_mode is None:
        vectorization_mode = "sync" if only_single or not _has_entry_point(env_id) else "vector_entry_point"
    if vectorization_mode == "vector_entry_point":
        if only_single or not isinstance(env_id, str):
            what = ", ".join(only_single) or "a function as env_id"
            raise ValueError(f'vectorization_mode="vector_entry_point" can\'t be had with {what}; "sync" can')
        return _registered(env_id, n_envs, seed, **kwargs)
    if vectorization_mode not in ("sync", "async"):
        raise ValueError(f'vectorization_mode must be "vector_entry_point", "sync" or "async", not {vectorization_mode!r}')
    kind: Any = gym.vector.SyncVectorEnv if vectorization_mode == "sync" else gym.vector.AsyncVectorEnv
    # With SAME_STEP, an environment that writes all of its observations into one array would lose the last one.
    vector_kwargs = {"autoreset_mode": "Disabled", **(vector_kwargs or {})}

    def made_of(env_fns: list[Callable[[], Env]]) -> GymnasiumVecEnv:
        # SB3 wraps each in a Monitor, beneath wrapper_class.
        return GymnasiumVecEnv(kind(env_fns, **vector_kwargs), monitor=False)

    made: Any = make_vec_env(env_id, n_envs, seed, vec_env_cls=made_of, **kwargs)  # type: ignore[arg-type]
    assert isinstance(made, GymnasiumVecEnv)
    return made


def _registered(
    env_id: str,
    n_envs: int,
    seed: int | None,
    env_kwargs: dict[str, Any] | None = None,
    monitor_dir: str | None = None,
    **_: None,
) -> "GymnasiumVecEnv":
    from sb3_trpo_plus.envs.vec.gymnasium import GymnasiumVecEnv

    env_kwargs = env_kwargs or {}
    try:
        venv = gym.make_vec(env_id, n_envs, "vector_entry_point", **{"render_mode": "rgb_array", **env_kwargs})
    except TypeError:
        venv = gym.make_vec(env_id, n_envs, "vector_entry_point", **env_kwargs)
    vec_env = GymnasiumVecEnv(venv, monitor_file=_monitor_file(monitor_dir))
    vec_env.seed(seed)
    vec_env.action_space.seed(seed)
    return vec_env


def make_envpool_vec(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    monitor_dir: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    num_threads: int | None = None,
) -> "EnvPoolVecEnv":
    """
    Environments of EnvPool.

    :param env_id: EnvPool's name, which is Gymnasium's for the environments that both have
    :param n_envs: number of environments
    :param seed: of the first environment, the others get the next ones; None: one at random, from NumPy's global generator
    :param monitor_dir: where to write the statistics of episodes, in one file for all environments; None: nowhere
    :param env_kwargs: of the environment, ``max_episode_steps`` among them
    :param num_threads: that step the environments; None: as many as the process may use cores, at most ``n_envs``
    :raises ImportError: EnvPool is not installed
    :raises TypeError: the environment has no such option
    :raises ValueError: EnvPool has no such environment
    """
    from sb3_trpo_plus.envs.vec.envpool import EnvPoolVecEnv

    file = _monitor_file(monitor_dir)
    vec_env = EnvPoolVecEnv(env_id, n_envs, seed, num_threads, monitor_file=file, **(env_kwargs or {}))
    vec_env.action_space.seed(seed)
    return vec_env


def _monitor_file(folder: str | None) -> str | None:
    if folder is None:
        return None
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, "0")


def _has_entry_point(env_id: Any) -> bool:
    spec = gym.registry.get(env_id) if isinstance(env_id, str) else None
    return spec is not None and spec.vector_entry_point is not None


def make_worker_vec(
    env_id: str | Callable[..., Env],
    n_envs: int = 1,
    seed: int | None = None,
    n_workers: int | None = None,
    start_method: str | None = None,
    timeout: float | None = None,
    **kwargs: Any,
) -> "WorkerVecEnv":
    """
    Environments in a few worker processes, each in SB3's ``Monitor``.

    :param env_id: an environment's id or class, or a function that makes one
    :param n_envs: number of environments
    :param seed: of the first environment at its first reset, the others' follow; None: at random
    :param n_workers: see :class:`WorkerVecEnv`, as for the next two
    :param start_method: of the processes
    :param timeout: in seconds
    :param kwargs: ``env_kwargs``, ``monitor_dir``, ``wrapper_class`` and others, as SB3's ``make_vec_env`` has them
    """
    from sb3_trpo_plus.envs.vec.workers import WorkerVecEnv

    of_workers = {"n_workers": n_workers, "start_method": start_method, "timeout": timeout}
    made: Any = make_vec_env(env_id, n_envs, seed, vec_env_cls=WorkerVecEnv, vec_env_kwargs=of_workers, **kwargs)  # type: ignore[arg-type]
    assert isinstance(made, WorkerVecEnv)
    return made
