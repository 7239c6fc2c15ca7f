"""Libraries with Stable-Baselines3's interface: itself, sb3-contrib, SBX and this one."""

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import turns
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize


def environments(task: dict[str, Any]) -> VecEnv:
    """Those of a workload, MuJoCo's normalised, as in RL Zoo."""
    kind, env_id, n_envs, cores = task["vec_env"], task["env"], task["n_envs"], task["cores"]
    if kind == "DummyVecEnv":
        env = make_vec_env(env_id, n_envs, seed=0)
    elif kind == "SubprocVecEnv":
        # By its default each process would import torch when it starts: minutes, and memory. They step alike.
        env = make_vec_env(env_id, n_envs, seed=0, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    else:
        from sb3_trpo_plus.envs import vec

        if kind == "WorkerVecEnv":
            env = vec.make_worker_vec(env_id, n_envs, seed=0, n_workers=cores)
        elif kind == "EnvPoolVecEnv":
            env = vec.make_envpool_vec(env_id, n_envs, seed=0, num_threads=cores)
        else:
            env = vec.make_gymnasium_vec(env_id, n_envs, seed=0)
    return VecNormalize(env) if env_id.endswith("-v4") else env


def prepare(task: dict[str, Any]) -> Callable[[int], object]:
    warnings.simplefilter("ignore")
    package, _, algorithm = task["algorithm"].rpartition(".")
    model = getattr(import_module(package), algorithm)(
        "MlpPolicy", environments(task), n_steps=task["n_steps"], seed=0, device="cpu", **task["settings"]
    )
    return lambda steps: model.learn(steps, reset_num_timesteps=False)


if __name__ == "__main__":
    turns.take(prepare)
