"""Environments in worker processes that end with the test."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sb3_trpo_plus.envs.vec.workers import WorkerVecEnv


@pytest.fixture
def workers() -> Iterator[Callable[..., WorkerVecEnv]]:
    """Makes them, forked unless it is told otherwise, which takes no time."""
    made: list[WorkerVecEnv] = []

    def make(env_fns: Any, n_workers: int | None = 2, start_method: str = "fork", **kwargs: Any) -> WorkerVecEnv:
        made.append(WorkerVecEnv(env_fns, n_workers, start_method, **kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()
