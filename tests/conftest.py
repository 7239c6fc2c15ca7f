"""What the tests share: small environments of every space, policies in double precision, logs, and real runs and files."""

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_trpo_plus.files import own
from tests.command_line.commands import OURSELVES, run

os.environ.setdefault("MPLBACKEND", "Agg")
SHARED = Path(__file__).parents[2] / "shared"

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1.0, 1.0, (3,)),
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
}
# What TRPO is given to act in ACTION_SPACES with each distribution that SB3 has.
DISTRIBUTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ACTION_SPACES},
    "gsde": ("box", {"use_sde": True}),
    "gsde_expln": ("box", {"use_sde": True, "policy_kwargs": {"use_expln": True, "full_std": False}}),
    "gsde_squashed": ("box", {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
}


class RandomEnv(gym.Env[Any, Any]):
    """Observations and rewards at random, the rewards a little better for small actions; episodes of 20 steps."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = float(self.np_random.normal()) - float(np.mean(np.abs(action)))
        return self.observation_space.sample(), reward, False, self.steps >= 20, {}


class DoubleExtractor(FlattenExtractor):
    """SB3 casts observations to float32; this casts them back for a policy in float64."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations).double()


def random_env(action_space: str = "box", observation_space: spaces.Space[Any] | None = None) -> RandomEnv:
    return RandomEnv(observation_space or spaces.Box(-2.0, 2.0, (4,)), ACTION_SPACES[action_space])


def forget_what_was_saved() -> None:
    """As if the files of this process were another's: it may load what it has itself saved as it is."""
    own._written.clear()


def collect(model: Any, timesteps: int | None = None) -> Any:
    """Fill the model's rollout buffer once, as learn() does, without a policy update."""
    _, callback = model._setup_learn(timesteps or model.n_steps * model.n_envs)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def parameters_of(model: Any) -> dict[str, th.Tensor]:
    return {name: value.detach().clone() for name, value in model.policy.named_parameters()}


def read_log(folder: Path) -> dict[str, str]:
    """The last row of the CSV logger, of the tags below ``train/``, without that."""
    with (folder / "progress.csv").open() as file:
        return {key.removeprefix("train/"): value for key, value in list(csv.DictReader(file))[-1].items() if "train/" in key}


@pytest.fixture(scope="session")
def zoo_agents() -> Path:
    folder = SHARED / "data" / "zoo_agents"
    if not folder.is_dir():
        pytest.skip(f"RL Zoo's published agents are not here: there is no {folder}")
    return folder


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[dict[str, Any], Any]]]:
    """Let a function run as it is, and keep its keyword arguments and what it returns."""

    def install(module: Any, name: str) -> list[tuple[dict[str, Any], Any]]:
        original, calls = getattr(module, name), []

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append((kwargs, original(*args, **kwargs)))
            return calls[-1][1]

        monkeypatch.setattr(module, name, call)
        return calls

    return install


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A short training by our command line, with observations normalised, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = ["--env", "MountainCarContinuous-v0", "-n", "4096", "--eval-freq", "2048", "--seed", "1", "-f", "logs"]
    return folder, run(*OURSELVES, "train", *arguments, cwd=folder)
