"""Where SB3's loggers make their folders, one for each model that learns; VecEnvs that are closed after a test."""

import os
from collections.abc import Iterator

import pytest
from stable_baselines3.common.vec_env import VecEnv

from tests.contract.vec_envs import KINDS, Makers, Open, counting


@pytest.fixture(autouse=True, scope="package")
def folder_of_the_loggers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("SB3_LOGDIR")
    os.environ["SB3_LOGDIR"] = str(tmp_path_factory.mktemp("logs"))
    yield
    del os.environ["SB3_LOGDIR"]
    if before is not None:
        os.environ["SB3_LOGDIR"] = before


@pytest.fixture
def opened() -> Iterator[Open]:
    """Makes a VecEnv of a kind, and closes it after the test."""
    there: list[VecEnv] = []

    def make(kind: str, makers: Makers | None = None) -> VecEnv:
        there.append(KINDS[kind].make(counting() if makers is None else makers))
        return there[-1]

    yield make
    for env in there:
        env.close()
