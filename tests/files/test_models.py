"""Saved models: round trips, sb3-contrib's files, RL Zoo's published agents of 2021, and damaged files."""

import copy
import functools
import io
import random
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common import utils
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trpo_plus import TRPO, load_vec_normalize
from tests.conftest import DISTRIBUTIONS, parameters_of, random_env

OBSERVATIONS = np.random.default_rng(0).uniform(-2, 2, (50, 4)).astype(np.float32)


def make(name: str = "box", cls: Any = TRPO, **kwargs: Any) -> Any:
    space, options = DISTRIBUTIONS[name]
    return cls("MlpPolicy", random_env(space), **{"n_steps": 64, "batch_size": 64, "seed": 0, **options, **kwargs})


def same_predictions(one: Any, other: Any) -> bool:
    pairs = zip(one.predict(OBSERVATIONS, deterministic=True), other.predict(OBSERVATIONS, deterministic=True), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs if a is not None)


def same_optimiser(one: Any, other: Any) -> bool:
    states = [model.policy.optimizer.state_dict() for model in (one, other)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    return all(
        th.equal(value, states[1]["state"][index][key])
        for index, entry in states[0]["state"].items()
        for key, value in entry.items()
    )


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    model = make(name, cg_residual_tol=0.1, fisher_sub_sampling_factor=2, ent_coef=0.01, learning_rate=3e-4).learn(128)
    model.save(tmp_path / "model.zip")
    loaded = TRPO.load(tmp_path / "model")
    assert same_predictions(model, loaded)
    assert same_optimiser(model, loaded)
    assert len(loaded.policy.optimizer.state_dict()["state"]) > 0
    for attribute in (
        "cg_residual_tol",
        "fisher_sub_sampling_factor",
        "ent_coef",
        "learning_rate",
        "num_timesteps",
        "_n_updates",
    ):
        assert getattr(loaded, attribute) == getattr(model, attribute)


def test_round_trip_through_an_open_file_keeps_its_position() -> None:
    model, file = make().learn(64), io.BytesIO()
    model.save(file)
    file.seek(0)
    assert same_predictions(model, TRPO.load(file))


@pytest.mark.parametrize("name", ["box", "gsde"])
def test_continued_training_is_that_of_an_uninterrupted_run(name: str, tmp_path: Path) -> None:
    model = make(name).learn(128)
    model.save(tmp_path / "model.zip")
    env = copy.deepcopy(model.env)
    states = random.getstate(), np.random.get_state(), th.get_rng_state()
    model.learn(128, reset_num_timesteps=False)

    loaded = TRPO.load(tmp_path / "model.zip", env=env, force_reset=False, seed=None)
    random.setstate(states[0])
    np.random.set_state(states[1])
    th.set_rng_state(states[2])
    loaded.learn(128, reset_num_timesteps=False)
    assert loaded.num_timesteps == model.num_timesteps == 256
    expected = parameters_of(model)
    for parameter, value in parameters_of(loaded).items():
        assert th.equal(value, expected[parameter]), parameter
    assert same_optimiser(model, loaded)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("saver", "loader"), [(sb3_contrib.TRPO, TRPO), (TRPO, sb3_contrib.TRPO)])
def test_files_are_exchanged_with_sb3_contrib(saver: Any, loader: Any, name: str, tmp_path: Path) -> None:
    model = make(name, saver, cg_damping=0.05, target_kl=0.02).learn(128)
    model.save(tmp_path / "model.zip")
    loaded = loader.load(tmp_path / "model.zip", env=random_env(DISTRIBUTIONS[name][0]))
    assert type(loaded) is loader
    assert same_predictions(model, loaded)
    assert same_optimiser(model, loaded)
    assert (loaded.cg_damping, loaded.target_kl) == (0.05, 0.02)
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 192


AGENTS = [
    "Acrobot-v1", "CartPole-v1", "HalfCheetah-v3", "Hopper-v3", "HopperBulletEnv-v0", "LunarLander-v2",
    "MountainCarContinuous-v0", "Pendulum-v1", "ReacherBulletEnv-v0",
]  # fmt: skip
# Where the environment still exists, under its present name, and the least mean return of 10 episodes that counts as near the
# published one: two standard errors below it (benchmarks/results/published_agents.csv has the spreads).
LIVING = {
    "CartPole-v1": ("CartPole-v1", 500.0),
    "Acrobot-v1": ("Acrobot-v1", -92.0),
    "MountainCarContinuous-v0": ("MountainCarContinuous-v0", 92.0),
    "Pendulum-v1": ("Pendulum-v1", -300.0),
    "LunarLander-v2": ("LunarLander-v3", 90.0),
    "HalfCheetah-v3": ("HalfCheetah-v4", 1700.0),
    "Hopper-v3": ("Hopper-v4", 3400.0),
}


@pytest.mark.parametrize("agent", AGENTS)
def test_published_agents_load_without_gym_and_act(agent: str, zoo_agents: Path) -> None:
    with pytest.raises(ModuleNotFoundError):
        import gym as _
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = TRPO.load(zoo_agents / agent / f"{agent}.zip", device="cpu")
    assert isinstance(model.observation_space, spaces.Box)
    assert model.lr_schedule(0.5) == pytest.approx(0.001)
    assert model.num_timesteps > 50_000
    for _ in range(5):
        action, _ = model.predict(model.observation_space.sample())
        assert model.action_space.contains(action)
    assert model.action_space.contains(model.action_space.sample())


@pytest.mark.parametrize("agent", LIVING)
def test_published_agents_return_what_was_published(agent: str, zoo_agents: Path) -> None:
    env_id, at_least = LIVING[agent]
    env = make_vec_env(env_id, 1, seed=0)
    statistics = zoo_agents / agent / "vecnormalize.pkl"
    if statistics.is_file():
        env = load_vec_normalize(statistics, env)
        env.training = env.norm_reward = False
    model = TRPO.load(zoo_agents / agent / f"{agent}.zip", device="cpu")
    mean, _ = evaluate_policy(model, env, 10)
    assert mean >= at_least


def test_published_agent_goes_on_learning(zoo_agents: Path, tmp_path: Path) -> None:
    env = make_vec_env("Pendulum-v1", 2, seed=0)
    model = TRPO.load(zoo_agents / "Pendulum-v1" / "Pendulum-v1.zip", env=env, device="cpu")
    model.learn(2048, reset_num_timesteps=False)
    assert model.num_timesteps == 100_352 + 2048
    model.save(tmp_path / "again.zip")
    assert sb3_contrib.TRPO.load(tmp_path / "again.zip").num_timesteps == model.num_timesteps


def users_linear_schedule(initial_value: float, final_value: float) -> Any:
    def func(progress_remaining: float) -> float:
        return final_value + progress_remaining * (initial_value - final_value)

    func.__qualname__, func.__module__ = "linear_schedule.<locals>.func", "utils.utils"
    return func


def users_constant_fn(val: float) -> Any:
    def func(progress_remaining: float) -> float:
        return val * progress_remaining**2

    func.__qualname__ = "constant_fn.<locals>.func"
    return func


def users_partial(value: float) -> Any:
    power = functools.partial(pow, exp=2)

    def func(progress_remaining: float) -> float:
        return value * power(progress_remaining)

    return func


@pytest.mark.parametrize(
    "schedule",
    [
        lambda progress: 1e-3 * progress**2,
        users_linear_schedule(1e-3, 1e-4),
        users_constant_fn(1e-3),
        users_partial(1e-3),
    ],
)
@pytest.mark.parametrize("saver", [TRPO, sb3_contrib.TRPO])
def test_schedules_of_the_users_own_survive_whatever_they_are_called(schedule: Any, saver: Any, tmp_path: Path) -> None:
    make(cls=saver, learning_rate=schedule).save(tmp_path / "model.zip")
    loaded = TRPO.load(tmp_path / "model.zip")
    assert [loaded.lr_schedule(p) for p in (1.0, 0.5, 0.1)] == pytest.approx([schedule(p) for p in (1.0, 0.5, 0.1)])


def test_custom_objects_of_the_caller_come_first(tmp_path: Path) -> None:
    model = make(learning_rate=utils.ConstantSchedule(1e-3))
    model.save(tmp_path / "model.zip")
    loaded = TRPO.load(tmp_path / "model.zip", custom_objects={"learning_rate": 5e-4, "lr_schedule": lambda _: 0.0})
    assert (loaded.learning_rate, loaded.lr_schedule(1.0)) == (5e-4, 5e-4)


def test_arguments_can_be_changed_on_loading_and_are_checked(tmp_path: Path) -> None:
    make().save(tmp_path / "model.zip")
    assert TRPO.load(tmp_path / "model.zip", target_kl=0.05).target_kl == 0.05
    with pytest.raises(ValueError, match=r"target_kl must be a positive number, but it is -1"):
        TRPO.load(tmp_path / "model.zip", target_kl=-1)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no saved model at .*nothing"):
        TRPO.load(tmp_path / "nothing")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_an_error_that_says_so(share: float, tmp_path: Path) -> None:
    make().save(tmp_path / "model.zip")
    whole = (tmp_path / "model.zip").read_bytes()
    (tmp_path / "model.zip").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"model\.zip' is not a whole saved model .*: it was cut off"):
        TRPO.load(tmp_path / "model.zip")


def test_damaged_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    make().save(tmp_path / "model.zip")
    damaged = bytearray((tmp_path / "model.zip").read_bytes())
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        position = archive.getinfo("policy.pth").header_offset
    damaged[position + 500] ^= 0xFF
    (tmp_path / "model.zip").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"policy\.pth is damaged"):
        TRPO.load(tmp_path / "model.zip")


def test_zip_of_something_else_is_an_error_that_says_so(tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "other"), "zip", Path(__file__).parents[1] / "trust_region")
    with pytest.raises(ValueError, match=r"not a whole saved model .it has no data and no policy"):
        TRPO.load(tmp_path / "other.zip")


def test_zip_of_another_algorithm_is_an_error_that_says_so(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "ppo.zip")
    with pytest.raises(ValueError, match=r"ppo\.zip' was saved by another algorithm.*clip_range as PPO's"):
        TRPO.load(tmp_path / "ppo.zip")


class Forgotten(gym.Wrapper[Any, Any, Any, Any]):
    """A class that is gone when its pickle is read."""


def test_object_that_cannot_be_read_is_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(learning_rate=utils.LinearSchedule(1e-3, 0.0, 1.0))
    model.note = Forgotten(random_env())
    model.save(tmp_path / "model.zip")
    monkeypatch.delattr("tests.files.test_models.Forgotten")
    with pytest.warns(UserWarning, match="its note can't be read here"):
        assert TRPO.load(tmp_path / "model.zip").note is None
    monkeypatch.delattr(utils, "LinearSchedule")
    with pytest.raises(ValueError, match=r"its learning_rate .* custom_objects=\{'learning_rate': \.\.\.\}"):
        TRPO.load(tmp_path / "model.zip")
    for given in ({"custom_objects": {"learning_rate": 1e-3}}, {"learning_rate": 1e-3}):
        with pytest.warns(UserWarning, match="note"):
            assert TRPO.load(tmp_path / "model.zip", **given).learning_rate == 1e-3


class ForgottenBuffer(RolloutBuffer):
    """A class that is gone when its pickle is read."""


def test_lost_rollout_buffer_class_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(rollout_buffer_class=ForgottenBuffer).save(tmp_path / "model.zip")
    monkeypatch.delattr("tests.files.test_models.ForgottenBuffer")
    with pytest.raises(ValueError, match="its rollout_buffer_class"):
        TRPO.load(tmp_path / "model.zip")


def test_stored_policy_kwargs_are_still_compared(tmp_path: Path) -> None:
    make(policy_kwargs={"net_arch": [8], "activation_fn": th.nn.ReLU}).save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="policy kwargs"):
        TRPO.load(tmp_path / "model.zip", policy_kwargs={"net_arch": [9], "activation_fn": th.nn.ReLU})


def test_zip_may_be_left_out_where_rl_zoo_has_a_folder_of_that_name(tmp_path: Path) -> None:
    make().save(tmp_path / "model.zip")
    (tmp_path / "model").mkdir()
    assert isinstance(TRPO.load(tmp_path / "model"), TRPO)
    assert isinstance(TRPO.load(str(tmp_path / "model")), TRPO)


def test_damaged_compressed_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    make().save(tmp_path / "model.zip")
    with (
        zipfile.ZipFile(tmp_path / "model.zip") as archive,
        zipfile.ZipFile(tmp_path / "small.zip", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in archive.namelist():
            small.writestr(name, archive.read(name))
        position = small.getinfo("policy.pth").header_offset
    assert isinstance(TRPO.load(tmp_path / "small.zip"), TRPO)
    damaged = bytearray((tmp_path / "small.zip").read_bytes())
    damaged[position + 200] ^= 0xFF
    (tmp_path / "small.zip").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"small\.zip' is not a whole saved model"):
        TRPO.load(tmp_path / "small.zip")
