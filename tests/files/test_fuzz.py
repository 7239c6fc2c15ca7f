"""A short fuzz; benchmarks/fuzz_files.py is the long one."""

import io
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO
from sb3_trpo_plus.files.errors import ModelFileError
from sb3_trpo_plus.files.statistics import read_vec_normalize
from tests.conftest import forget_what_was_saved, parameters_of, random_env
from tests.files.mutations import mutated

MUTATIONS = 150


def model_file(cls: Any, **kwargs: Any) -> bytes:
    file = io.BytesIO()
    policy_kwargs = {"net_arch": [4]}
    cls("MlpPolicy", random_env(), n_steps=16, batch_size=16, policy_kwargs=policy_kwargs, seed=0, **kwargs).learn(16).save(
        file
    )
    forget_what_was_saved()
    return file.getvalue()


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [(TRPO, {"use_sde": True}), (NPG, {}), (PPOPenalty, {}), (VineTRPO, {"n_rollout_states": 2, "rollout_length": 4})],
)
def test_mutated_file_opens_with_finite_parameters_or_is_refused(cls: Any, kwargs: Any) -> None:
    real, rng, refused = model_file(cls, **kwargs), random.Random(cls.__name__), 0
    for _ in range(MUTATIONS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model = cls.load(io.BytesIO(mutated(real, rng)), device="cpu")
            except ModelFileError:
                refused += 1
                continue
        assert all(parameter.isfinite().all() for parameter in parameters_of(model).values())
    assert 0.3 * MUTATIONS < refused < MUTATIONS


def test_mutated_statistics_open_or_are_refused(zoo_agents: Path, tmp_path: Path) -> None:
    real, rng = (zoo_agents / "Hopper-v3" / "vecnormalize.pkl").read_bytes(), random.Random(0)
    path, refused = tmp_path / "vecnormalize.pkl", 0
    for _ in range(MUTATIONS):
        changed = bytearray(real)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            statistics = read_vec_normalize(path)
        except ModelFileError:
            refused += 1
            continue
        assert np.isfinite(statistics.obs_rms.mean).all()
        assert np.isfinite(statistics.obs_rms.var).all()
    assert 0 < refused < MUTATIONS
