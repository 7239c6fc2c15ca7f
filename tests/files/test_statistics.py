"""Statistics of VecNormalize."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trpo_plus import load_vec_normalize
from tests.conftest import random_env


def test_statistics_round_trip_and_wrong_files(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([random_env]))
    env.reset()
    for _ in range(10):
        env.step([env.action_space.sample()])
    env.save(str(tmp_path / "vecnormalize.pkl"))
    loaded = load_vec_normalize(tmp_path / "vecnormalize.pkl", DummyVecEnv([random_env]))
    assert np.array_equal(loaded.obs_rms.mean, env.obs_rms.mean)
    (tmp_path / "other.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"other\.pkl holds a list"):
        load_vec_normalize(tmp_path / "other.pkl", DummyVecEnv([random_env]))
    (tmp_path / "cut.pkl").write_bytes((tmp_path / "vecnormalize.pkl").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cut\.pkl can't be read"):
        load_vec_normalize(tmp_path / "cut.pkl", DummyVecEnv([random_env]))
