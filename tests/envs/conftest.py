"""Environments in other processes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv


@pytest.fixture
def in_subprocesses() -> Iterator[Callable[..., VecEnv]]:
    """Made, reset, and closed at the end, whatever happens."""
    made = []

    def make_reset(name: str, n_envs: int = 1, **kwargs: Any) -> VecEnv:
        fork = {"start_method": "fork"}
        made.append(make_vec_env(name, n_envs, seed=0, vec_env_cls=SubprocVecEnv, vec_env_kwargs=fork, **kwargs))
        made[-1].reset()
        return made[-1]

    yield make_reset
    for vec_env in made:
        vec_env.close()
