"""Saved models: round trips, sb3-contrib's files, RL Zoo's published agents of 2021, and damaged files."""

import base64
import collections
import copy
import functools
import io
import json
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
from rl_zoo3.utils import SimpleLinearSchedule
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common import utils
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, TrainingCheckpoint, VineTRPO, load_vec_normalize
from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.gym_years import GymYearsUnpickler
from sb3_trpo_plus.files.inspection import inspect_model
from sb3_trpo_plus.files.models import NOT_THE_FILES
from sb3_trpo_plus.files.rebuild import OPTIMISERS as OPTIMISERS_OF_TORCH
from sb3_trpo_plus.files.rebuild import rebuilt
from sb3_trpo_plus.files.tensors import read_tensors
from tests.conftest import DISTRIBUTIONS, forget_what_was_saved, parameters_of, random_env

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


OPTIMISERS: list[tuple[Any, dict[str, Any]]] = [
    *((getattr(th.optim, name), {}) for name in OPTIMISERS_OF_TORCH),
    (RMSpropTFLike, {"eps": 1e-5, "momentum": 0.1}),
    (th.optim.Adam, {"amsgrad": True, "betas": [0.8, 0.9]}),
    (th.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (th.optim.RMSprop, {"momentum": 0.9, "centered": True}),
]


@pytest.mark.parametrize(("optimizer_class", "optimizer_kwargs"), OPTIMISERS)
def test_rate_below_0_of_a_schedule_that_was_overshot_opens_as_0(
    optimizer_class: Any, optimizer_kwargs: dict[str, Any], tmp_path: Path
) -> None:
    """The rest of the optimiser's state is that which sb3-contrib loads, and the next update has the schedule's rate."""
    settings = {"optimizer_class": optimizer_class, "optimizer_kwargs": optimizer_kwargs}
    theirs = make(cls=sb3_contrib.TRPO, learning_rate=SimpleLinearSchedule(1e-3), policy_kwargs=settings).learn(100)
    theirs.save(tmp_path / "model.zip")
    saved = sb3_contrib.TRPO.load(tmp_path / "model.zip").policy.optimizer.state_dict()
    assert saved["param_groups"][0]["lr"] == pytest.approx(1e-3 * (1 - 128 / 100))
    loaded = TRPO.load(tmp_path / "model.zip", env=random_env())
    groups = loaded.policy.optimizer.state_dict()["param_groups"]
    assert [{**group, "lr": None} for group in groups] == [{**group, "lr": None} for group in saved["param_groups"]]
    assert groups[0]["lr"] == 0
    assert len(saved["state"]) > 0 or (optimizer_class, optimizer_kwargs) == (th.optim.SGD, {})
    assert same(loaded.policy.optimizer.state_dict()["state"], saved["state"])
    assert same_predictions(loaded, theirs)
    loaded.learn(256)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0)
    loaded.learn(1000, callback=lambda *_: loaded.num_timesteps <= 64)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * (1 - 64 / 1000))
    fresh = make(policy_kwargs=settings)
    fresh.set_parameters(theirs.get_parameters())
    assert fresh.policy.optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -float("inf"), "0.1", None, True, 1j])
def test_rate_that_is_no_number_is_refused(rate: Any, tmp_path: Path) -> None:
    model = make().learn(64)
    model.policy.optimizer.param_groups[0]["lr"] = rate
    model.save(tmp_path / "model.zip")
    with pytest.raises(ModelFileError, match=r"model\.zip'.* its policy\.optimizer\.pth has"):
        TRPO.load(tmp_path / "model.zip")


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


REAL = [*(Path(__file__).parents[2] / "benchmarks" / "agents").glob("*/*_*/*.zip")]


def same(one: Any, other: Any) -> bool:
    """Whether two attributes are equal, arrays and tensors in them element by element."""
    if isinstance(one, th.Tensor):
        return th.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or same(vars(one), vars(other)))


def test_real_files_are_the_same_read_as_data_and_unpickled(zoo_agents: Path) -> None:
    paths = [*REAL, *zoo_agents.glob("*/*.zip")]
    assert len(paths) >= 25
    compared = 0
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        for name, value in json.loads(members["data"]).items():
            if not (isinstance(value, dict) and ":serialized:" in value) or value[":type:"] == "<class 'function'>":
                continue
            pickled = base64.b64decode(value[":serialized:"])
            unpickled = GymYearsUnpickler(io.BytesIO(pickled)).load()
            if isinstance(unpickled, spaces.Box):
                # One of Gym's lacks what Gymnasium compares.
                bounds = [(space.low, space.high, space.dtype) for space in (rebuilt(pickled), unpickled)]
                assert same(*bounds), (path, name)
            else:
                assert same(rebuilt(pickled), unpickled), (path, name)
            compared += 1
        for name in ("policy.pth", "policy.optimizer.pth"):
            by_torch = th.load(io.BytesIO(members[name]), map_location="cpu", weights_only=True)
            assert same(read_tensors(members[name]), by_torch), (path, name)
        assert same(dict(TRPO.load(path, device="cpu").policy.state_dict()), dict(read_tensors(members["policy.pth"])))
    assert compared > 200


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
    forget_what_was_saved()
    with pytest.raises(UnsafeFileError, match=r"model\.zip' is refused: its learning_rate needs the function .*trust=True"):
        TRPO.load(tmp_path / "model.zip")
    loaded = TRPO.load(tmp_path / "model.zip", trust=True)
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


@pytest.mark.parametrize("cls", [TRPO, NPG, PPOPenalty, VineTRPO])
def test_every_attribute_that_is_saved_comes_back(cls: Any, tmp_path: Path) -> None:
    """But those that no file decides."""
    model = make(cls=cls, on_nonfinite="skip", tensorboard_log=str(tmp_path)).learn(64)
    model.mine = {"a": [1, 2.5, "x"]}
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        names = set(json.loads(archive.read("data")))
    loaded = cls.load(tmp_path / "model.zip")
    assert names & NOT_THE_FILES == {"tensorboard_log", "lr_schedule"}
    for name in names - NOT_THE_FILES:
        assert same(getattr(loaded, name), getattr(model, name)), name
    assert loaded.tensorboard_log is None


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
    with pytest.raises(ValueError, match=r"other\.zip' is not a whole saved model .it has no data"):
        TRPO.load(tmp_path / "other.zip")


def test_checkpoint_is_called_one(tmp_path: Path) -> None:
    make().learn(64, callback=TrainingCheckpoint(tmp_path))
    (path,) = tmp_path.glob("*.zip")
    words = r"steps\.zip' is a checkpoint of a training, .*: go on with it by .*TRPO\.resume\(path, env\)"
    for read in (TRPO.load, make().set_parameters, inspect_model):
        with pytest.raises(ModelFileError, match=words):
            read(path)
    with pytest.raises(ModelFileError, match=words):
        TRPO.load(path, trust=True)


def test_file_is_called_by_its_name(tmp_path: Path) -> None:
    """Also where ``.zip`` is left out."""
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "model")
    for read in (TRPO.load, make().set_parameters):
        with pytest.raises(ModelFileError, match=r"^The file '.*model\.zip'"):
            read(tmp_path / "model")
    with pytest.raises(ModelFileError, match=r"^The file '.*model\.zip'"):
        TRPO.load(tmp_path / "model", trust=True)


def test_zip_of_another_algorithm_is_an_error_that_says_so(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "ppo.zip")
    words = r"ppo\.zip': it was saved by another algorithm, PPO, TRPO can't load it: it has a clip_range$"
    with pytest.raises(ValueError, match=words):
        TRPO.load(tmp_path / "ppo.zip")
    for cls, env in ((SAC, "Pendulum-v1"), (TD3, "Pendulum-v1"), (DQN, "CartPole-v1")):
        cls("MlpPolicy", env, buffer_size=10).save(tmp_path / "other.zip")
        words = rf"other\.zip': it was saved by another algorithm, {cls.__name__}, TRPO can't load it"
        with pytest.raises(ModelFileError, match=words):
            TRPO.load(tmp_path / "other.zip")
    A2C("MlpPolicy", "CartPole-v1").save(tmp_path / "a2c.zip")
    for algorithm, told_by in ((TRPO, "line_search_max_iter"), (NPG, "step_size"), (VineTRPO, "n_rollout_states")):
        words = rf"was saved by another algorithm, {algorithm.__name__} can't load it: it has no {told_by}$"
        with pytest.raises(ValueError, match=words):
            algorithm.load(tmp_path / "a2c.zip")


class Forgotten(gym.Wrapper[Any, Any, Any, Any]):
    """A class that is gone when its pickle is read."""


def test_object_that_cannot_be_read_is_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(learning_rate=utils.LinearSchedule(1e-3, 0.0, 1.0))
    model.note = Forgotten(random_env())
    model.save(tmp_path / "model.zip")
    monkeypatch.delattr("tests.files.test_models.Forgotten")
    with pytest.warns(UserWarning, match=r"model\.zip': an attribute .* is left out, its note needs a call of .*Forgotten"):
        assert not hasattr(TRPO.load(tmp_path / "model.zip"), "note")
    with pytest.raises(ModelFileError, match=r"its note .*custom_objects=\{'note': \.\.\.\}"):
        TRPO.load(tmp_path / "model.zip", trust=True)
    for trust in (False, True):
        assert TRPO.load(tmp_path / "model.zip", custom_objects={"note": None}, trust=trust).learning_rate(0.5) == 5e-4
        assert TRPO.load(tmp_path / "model.zip", note=None, learning_rate=1e-3, trust=trust).learning_rate == 1e-3


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


# Saved by the package when all its modules lay in one folder, with an NPG that was made from TRPO.
DATA = Path(__file__).parent / "data"
BEFORE_THE_ROOMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "trpo": (TRPO, {"ent_coef": 0.001, "n_steps": 64, "num_timesteps": 128}),
    "npg": (NPG, {"step_size": 0.1, "n_steps": 32, "num_timesteps": 64}),
    "trpo_vine": (VineTRPO, {"n_rollout_states": 4, "rollout_length": 10, "n_steps": 32, "num_timesteps": 216}),
}


@pytest.mark.parametrize("name", BEFORE_THE_ROOMS)
def test_file_from_before_the_rooms_loads_acts_and_goes_on(name: str, tmp_path: Path) -> None:
    algorithm, saved = BEFORE_THE_ROOMS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = algorithm.load(DATA / f"{name}.zip", env=make_vec_env("CartPole-v1", 1, seed=0))
    assert type(model) is algorithm
    assert {attribute: getattr(model, attribute) for attribute in saved} == saved
    assert model.policy_kwargs == {"net_arch": [8]}
    assert model._n_updates == 2
    if name == "trpo":
        for schedule, ends in ((model.target_kl, (0.02, 0.01)), (model.gamma, (0.98, 0.99))):
            assert type(schedule) is utils.LinearSchedule
            assert (schedule(1.0), schedule(0.0)) == pytest.approx(ends)
    with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
        weights = th.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    assert all(th.equal(value, weights[key]) for key, value in model.policy.state_dict().items())
    actions, _ = model.predict(OBSERVATIONS, deterministic=True)
    assert set(actions) <= {0, 1}
    with th.no_grad():
        logits = model.policy.get_distribution(th.as_tensor(OBSERVATIONS)).distribution.logits
    assert np.array_equal(actions, logits.argmax(dim=1).numpy())

    before = parameters_of(model)
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps >= saved["num_timesteps"] + 64
    assert any(not th.equal(value, before[key]) for key, value in parameters_of(model).items())
    model.save(tmp_path / "again.zip")
    assert same_predictions(algorithm.load(tmp_path / "again.zip"), model)


@pytest.mark.parametrize(
    ("name", "loads"),
    [
        (name, loads)
        for name, (algorithm, _) in BEFORE_THE_ROOMS.items()
        for loads in (TRPO, NPG, VineTRPO, PPOPenalty)
        if loads is not algorithm
    ],
)
def test_file_from_before_the_rooms_is_refused_by_the_others(name: str, loads: Any) -> None:
    algorithm, _ = BEFORE_THE_ROOMS[name]
    with pytest.raises(ValueError, match=f"another algorithm, {algorithm.__name__}, {loads.__name__} can't load it: it has a"):
        loads.load(DATA / f"{name}.zip")


def test_file_from_before_the_rooms_loads_in_sb3_contrib() -> None:
    ours, theirs = (algorithm.load(DATA / "trpo.zip") for algorithm in (TRPO, sb3_contrib.TRPO))
    assert same_predictions(ours, theirs)


@pytest.mark.parametrize("name", ["box", "gsde"])
def test_own_settings_survive_a_training_by_sb3_contrib(name: str, tmp_path: Path) -> None:
    own = {
        "cg_residual_tol": 0.2,
        "fisher_sub_sampling_factor": 2,
        "kl_constraint": "max",
        "fisher": "empirical",
        "ent_coef": 0.01,
    }
    make(name, **own).learn(64).save(tmp_path / "ours.zip")
    theirs = sb3_contrib.TRPO.load(tmp_path / "ours.zip", env=random_env())
    theirs.learn(64, reset_num_timesteps=False).save(tmp_path / "theirs.zip")
    back = TRPO.load(tmp_path / "theirs.zip", env=random_env())
    assert type(back) is TRPO
    assert {attribute: getattr(back, attribute) for attribute in own} == own
    assert same_predictions(back, theirs)
    assert same_optimiser(back, theirs)
    back.learn(64, reset_num_timesteps=False)
    assert back.num_timesteps == 192


class WithoutOptimiser(TRPO):
    """Keeps less than others."""

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy"], []


class WithTeacher(TRPO):
    """Keeps more than others: a network and a tensor."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.teacher, self.scale = th.nn.Linear(4, 3), th.ones(1)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "teacher", "scale"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "teacher"], [*tensors, "scale"]


def test_subclass_that_keeps_other_tensors_saves_and_loads(tmp_path: Path) -> None:
    less = make(cls=WithoutOptimiser).learn(64)
    less.save(tmp_path / "less.zip")
    assert "policy.optimizer.pth" not in zipfile.ZipFile(tmp_path / "less.zip").namelist()
    loaded = WithoutOptimiser.load(tmp_path / "less.zip", env=random_env())
    assert same_predictions(less, loaded)
    loaded.learn(64, reset_num_timesteps=False)

    more = make(cls=WithTeacher).learn(64)
    more.scale = th.full((1,), 7.0)
    more.save(tmp_path / "more.zip")
    loaded = WithTeacher.load(tmp_path / "more.zip", env=random_env())
    assert same_predictions(more, loaded)
    assert same_optimiser(more, loaded)
    assert th.equal(loaded.teacher.weight, more.teacher.weight)
    assert loaded.scale.item() == 7.0
    loaded.learn(64, reset_num_timesteps=False)
    whole = (tmp_path / "more.zip").read_bytes()
    (tmp_path / "more.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"more\.zip' is not a whole saved model"):
        WithTeacher.load(tmp_path / "more.zip")


class MyTRPO(TRPO):
    """As users write one."""

    def __init__(self, policy: Any, env: Any, note: str = "mine", **kwargs: Any) -> None:
        super().__init__(policy, env, **kwargs)
        self.note = note


class MyNPG(NPG):
    """As users write one."""


@pytest.mark.parametrize(
    ("saver", "loader"),
    [(TRPO, MyTRPO), (MyTRPO, TRPO), (MyTRPO, MyTRPO), (NPG, MyNPG), (MyNPG, NPG), (sb3_contrib.TRPO, MyTRPO)],
)
def test_subclass_of_the_user_opens_the_files_of_its_base_and_the_other_way_round(
    saver: Any, loader: Any, tmp_path: Path
) -> None:
    model = make(cls=saver).learn(64)
    model.save(tmp_path / "model.zip")
    loaded = loader.load(tmp_path / "model.zip", env=random_env())
    assert type(loaded) is loader
    assert same_predictions(model, loaded)
    assert same_optimiser(model, loaded)
    if loader is MyTRPO:
        assert loaded.note == "mine"
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 128


def test_subclass_of_the_user_is_named_where_it_refuses_a_file(tmp_path: Path) -> None:
    make(cls=MyNPG).save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"another algorithm, NPG, MyTRPO can't load it: it has a step_size$"):
        MyTRPO.load(tmp_path / "model.zip")
    assert type(MyTRPO.load(DATA / "trpo.zip")) is MyTRPO
