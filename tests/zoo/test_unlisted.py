"""The entry ``default`` with environments that no file lists: each kind of observation and action, with each member."""

from argparse import Namespace
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo_plus import zoo
from sb3_trpo_plus.zoo.unlisted import settings_for
from tests.conftest import random_env

VECTOR = spaces.Box(-2.0, 2.0, (4,))
IMAGE = spaces.Box(0, 255, (40, 40, 3), np.uint8)
SMALL_IMAGE = spaces.Box(0, 255, (7, 7, 3), np.uint8)
# RL Zoo's manager may have been imported before, by way of the opt-in, when it was not there to be adapted.
zoo.register()
NO_OBSERVATIONS = {"norm_obs": False}
FLATTEN = "gymnasium.wrappers.FlattenObservation"
UNIT = "sb3_trpo_plus.wrappers.unit_actions"

# Observations, and what must be found for them.
FOUND: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "vector": (VECTOR, {"policy": "MlpPolicy", "normalize": True}),
    "integers": (spaces.Box(0, 9, (3,), np.int64), {"policy": "MlpPolicy", "normalize": True}),
    "discrete": (spaces.Discrete(5), {"policy": "MlpPolicy", "normalize": NO_OBSERVATIONS}),
    "multi_discrete": (spaces.MultiDiscrete([3, 2]), {"policy": "MlpPolicy", "normalize": NO_OBSERVATIONS}),
    "multi_binary": (spaces.MultiBinary(3), {"policy": "MlpPolicy", "normalize": NO_OBSERVATIONS}),
    "image": (IMAGE, {"policy": "CnnPolicy", "normalize": NO_OBSERVATIONS}),
    "image_channels_first": (spaces.Box(0, 255, (3, 40, 40), np.uint8), {"policy": "CnnPolicy", "normalize": NO_OBSERVATIONS}),
    "small_image": (SMALL_IMAGE, {"policy": "MlpPolicy", "normalize": True}),
    "float_image": (spaces.Box(0, 1, (10, 10, 4)), {"policy": "MlpPolicy", "normalize": True}),
    "grey_image": (
        spaces.Box(0, 255, (40, 40), np.uint8),
        {
            "env_wrapper": [UNIT, "sb3_trpo_plus.wrappers.with_channel"],
            "policy": "CnnPolicy",
            "normalize": NO_OBSERVATIONS,
        },
    ),
    "dict": (
        spaces.Dict({"place": VECTOR, "mode": spaces.Discrete(3), "camera": IMAGE, "map": SMALL_IMAGE}),
        {"policy": "MultiInputPolicy", "normalize": {"norm_obs_keys": ["map", "place"]}},
    ),
    "dict_without_numbers": (
        spaces.Dict({"mode": spaces.Discrete(3)}),
        {"policy": "MultiInputPolicy", "normalize": NO_OBSERVATIONS},
    ),
    "tuple": (
        spaces.Tuple([spaces.Discrete(3), VECTOR]),
        {"env_wrapper": [UNIT, FLATTEN], "policy": "MlpPolicy", "normalize": True},
    ),
    "nested": (
        spaces.Dict({"arm": spaces.Dict({"place": VECTOR})}),
        {"env_wrapper": [UNIT, FLATTEN], "policy": "MlpPolicy", "normalize": True},
    ),
    "unreadable_key": (
        spaces.Dict({"place": VECTOR, "path": spaces.Sequence(spaces.Discrete(3))}),
        {
            "env_wrapper": [UNIT, {"gymnasium.wrappers.FilterObservation": {"filter_keys": ["place"]}}],
            "policy": "MultiInputPolicy",
            "normalize": {"norm_obs_keys": ["place"]},
        },
    ),
}
DEFAULT = yaml.safe_load(zoo.hyperparams_file("trpo").read_text())["default"]


class Mission(spaces.Space[str]):
    """As MiniGrid has it: a space that Gymnasium does not know."""

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return "go"

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    @property
    def is_np_flattenable(self) -> bool:
        return True


FOUND["unknown_key"] = (
    spaces.Dict({"place": VECTOR, "mission": Mission()}),
    {
        "env_wrapper": [UNIT, {"gymnasium.wrappers.FilterObservation": {"filter_keys": ["place"]}}],
        "policy": "MultiInputPolicy",
        "normalize": {"norm_obs_keys": ["place"]},
    },
)


@pytest.fixture
def registered() -> Any:
    """Registers environments for the time of a test."""
    ids = []

    def register(observation_space: spaces.Space[Any], action_space: str = "discrete") -> str:
        ids.append(f"Unlisted{len(ids)}-v0")
        # A copy, since SB3's VecNormalize changes the spaces of a Dict in place.
        make = lambda **_: random_env(action_space, deepcopy(observation_space))  # noqa: E731
        gym.register(ids[-1], make, disable_env_checker=True)
        return ids[-1]

    yield register
    for env_id in ids:
        del gym.registry[env_id]


@pytest.mark.parametrize("kind", FOUND)
def test_what_is_found_for_observations(kind: str, registered: Any) -> None:
    space, expected = FOUND[kind]
    assert settings_for(registered(space), {}, DEFAULT, {})[0] == expected


def test_what_the_user_says_holds(registered: Any) -> None:
    env_id = registered(FOUND["nested"][0])
    given = {"policy": "CnnPolicy", "normalize": False, "env_wrapper": FLATTEN}
    assert settings_for(env_id, {}, DEFAULT, given)[0] == {}
    # With a wrapper of the user's own, what follows is for what it hands on.
    assert settings_for(env_id, {}, DEFAULT, {"env_wrapper": FLATTEN})[0] == {"policy": "MlpPolicy", "normalize": True}


def test_an_entry_that_does_not_normalise_is_not_made_to(registered: Any) -> None:
    found, _ = settings_for(registered(VECTOR), {}, {"policy": "MlpPolicy"}, {})
    assert found == {"policy": "MlpPolicy"}
    # But for what SB3's convolutional network would fail on.
    found, _ = settings_for(registered(FOUND["dict"][0]), {}, {"policy": "MlpPolicy"}, {})
    assert found == {"policy": "MultiInputPolicy", "normalize": {"norm_obs_keys": ["map"], "norm_reward": False}}


def manager(algo: str, env_id: str, folder: Path, **arguments: Any) -> ExperimentManager:
    arguments = {"n_timesteps": 512, "eval_freq": -1, "log_interval": -1, "verbose": 0, "device": "cpu", **arguments}
    return ExperimentManager(Namespace(algo=algo, env=env_id, seed=0), algo, env_id, str(folder), **arguments)


@pytest.mark.parametrize("kind", FOUND)
@pytest.mark.parametrize("algo", zoo.ALGORITHMS)
def test_every_member_trains_on_it(algo: str, kind: str, registered: Any, tmp_path: Path) -> None:
    action_space = {"dict": "multi_discrete", "image": "box", "tuple": "multi_binary", "vector": "box"}.get(kind, "discrete")
    env_id = registered(FOUND[kind][0], action_space)
    # One environment of few steps: what is tested is that spaces, policy and statistics fit each other.
    small = {"n_envs": 1, "n_steps": 32, "n_timesteps": 64, "batch_size": 32}
    small |= {"n_rollout_states": 4, "rollout_length": 8} if algo == "trpo_vine" else {}
    made = manager(algo, env_id, tmp_path, n_timesteps=64, hyperparams=small)
    model, _ = made.setup_experiment()  # type: ignore[misc]
    made.learn(model)
    made.save_trained_model(model)
    assert model.num_timesteps >= 64
    saved = tmp_path / algo / f"{env_id}_1"
    assert (saved / f"{env_id}.zip").is_file()
    statistics = isinstance(model.get_vec_normalize_env(), VecNormalize)
    assert statistics == (algo != "trpo_vine" or kind == "dict") == (saved / env_id / "vecnormalize.pkl").is_file()


def test_atari_takes_its_own_entry_and_its_memory_the_default(tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    pictures = manager("trpo", "ALE/Freeway-v5", tmp_path).read_hyperparameters()[1]
    assert pictures["frame_stack"] == 4
    assert pictures["policy"] == "CnnPolicy"
    memory = manager("trpo", "ALE/Freeway-v5", tmp_path, env_kwargs={"obs_type": "ram"}).read_hyperparameters()[1]
    assert "frame_stack" not in memory
    assert memory["policy"] == "MlpPolicy"
