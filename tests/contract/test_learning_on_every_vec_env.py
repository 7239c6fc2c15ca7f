"""Wrappers, learning and evaluation on every VecEnv: what they give on ``DummyVecEnv``, to the bit."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_trpo_plus import TRPO, VineTRPO
from tests.contract.vec_envs import ENDINGS, KINDS, Open, actions_of, assert_equal, counting, kinds

DICT = spaces.Dict({"a": spaces.Box(-1.0, 100.0, (2,)), "b": spaces.Box(-1.0, 100.0, (3,))})
IMAGE = spaces.Box(0, 255, (8, 8, 3), np.uint8)
STACKS: dict[str, tuple[spaces.Space[Any] | None, Callable[[VecEnv], VecEnv]]] = {
    "normalize": (None, VecNormalize),
    "normalize a dict": (DICT, lambda env: VecNormalize(env, norm_obs_keys=["a"])),
    "frame stack": (None, lambda env: VecFrameStack(env, 3)),
    "frame stack of a dict": (DICT, lambda env: VecFrameStack(env, 2)),
    "monitor": (None, VecMonitor),
    "check nan": (None, lambda env: VecCheckNan(env, raise_exception=True)),
    "transpose": (IMAGE, lambda env: VecTransposeImage(VecFrameStack(env, 2))),
    "extract": (DICT, lambda env: VecExtractDictObs(env, "a")),
    "normalize over frame stack over monitor": (None, lambda env: VecNormalize(VecFrameStack(VecMonitor(env), 2))),
}
N_ENVS = 4


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
@pytest.mark.parametrize("name", STACKS)
@kinds()
def test_wrappers(kind: str, name: str, opened: Open) -> None:
    """SB3's own VecEnv wrappers on top."""
    space, wrap = STACKS[name]
    makers = counting(ENDINGS, observation_space=space)
    env, other = wrap(opened(kind, makers)), wrap(opened("dummy", makers))
    assert env.observation_space == other.observation_space
    assert_equal(env.reset(), other.reset())
    for action in actions_of(other.unwrapped, 30):
        found, expected = env.step(action), other.step(action)
        assert_equal(found[0], expected[0])
        assert_equal(found[2], expected[2])
        np.testing.assert_allclose(found[1], expected[1], rtol=0 if KINDS[kind].ours else 1e-6)
        for index in np.flatnonzero(expected[2]):
            mine, theirs = found[3][index], expected[3][index]
            assert_equal(mine["terminal_observation"], theirs["terminal_observation"])
            assert mine["TimeLimit.truncated"] == theirs["TimeLimit.truncated"]
            assert (mine["episode"]["r"], mine["episode"]["l"]) == (theirs["episode"]["r"], theirs["episode"]["l"])


def pendulum() -> gym.Env[Any, Any]:
    """Rewards that do not end, and episodes that are cut off at different times."""
    return Monitor(gym.make("Pendulum-v1", max_episode_steps=50))


def cart_pole() -> gym.Env[Any, Any]:
    """Episodes that end by themselves."""
    return Monitor(gym.make("CartPole-v1"))


def model_on(env: VecEnv, algorithm: type[Any] = TRPO, **kwargs: Any) -> Any:
    small = {"n_steps": 64, "batch_size": 64, "n_critic_updates": 3, "policy_kwargs": {"net_arch": [16]}, "device": "cpu"}
    return algorithm("MlpPolicy", env, seed=3, **{**small, **kwargs})


def assert_same_models(one: Any, other: Any) -> None:
    """In every number that learning leaves."""
    mine, theirs = one.policy.state_dict(), other.policy.state_dict()
    assert list(mine) == list(theirs)
    for name, value in theirs.items():
        assert th.equal(mine[name], value), name
    for field in ("observations", "actions", "rewards", "advantages", "returns"):
        np.testing.assert_array_equal(getattr(one.rollout_buffer, field), getattr(other.rollout_buffer, field))
    episodes = [[(episode["r"], episode["l"]) for episode in model.ep_info_buffer] for model in (one, other)]
    assert episodes[0] == episodes[1]
    assert len(episodes[0]) > 2


@pytest.mark.parametrize(
    ("algorithm", "make"),
    [(TRPO, pendulum), (TRPO, cart_pole), (sb3_contrib.TRPO, cart_pole)],
    ids=["truncations", "terminations", "sb3_contrib"],
)
@kinds()
def test_learning(kind: str, algorithm: type[Any], make: Callable[[], gym.Env[Any, Any]], opened: Open) -> None:
    """Three updates with a seed: the same policy, buffer and episodes, to the bit."""
    models = [model_on(opened(one, [make] * N_ENVS), algorithm).learn(3 * 64 * N_ENVS) for one in (kind, "dummy")]
    assert_same_models(*models)


@kinds("rewards of float32")
def test_learning_with_normalisation(kind: str, opened: Open) -> None:
    """The same statistics of ``VecNormalize``, too."""
    models = [model_on(VecNormalize(opened(one, [pendulum] * N_ENVS))).learn(2 * 64 * N_ENVS) for one in (kind, "dummy")]
    for name in ("obs_rms", "ret_rms"):
        mine, theirs = (getattr(model.get_vec_normalize_env(), name) for model in models)
        assert_equal([mine.mean, mine.var, mine.count], [theirs.mean, theirs.var, theirs.count])
    assert_same_models(*models)


def test_vine_on_workers(opened: Open) -> None:
    """It saves and restores the environments in their processes."""
    models = [
        model_on(opened(kind, [cart_pole] * 2), VineTRPO, n_steps=32, batch_size=16, n_critic_updates=1).learn(128)
        for kind in ("workers", "dummy")
    ]
    for mine, theirs in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.equal(mine, theirs)


@kinds()
def test_saved_and_loaded(kind: str, opened: Open, tmp_path: Path) -> None:
    """``save``, ``load`` and ``set_env`` with other environments of the kind; learning goes on as with ``DummyVecEnv``."""
    models = []
    for one in (kind, "dummy"):
        model_on(opened(one, [cart_pole] * N_ENVS)).learn(64 * N_ENVS).save(tmp_path / one)
        loaded: Any = TRPO.load(tmp_path / one, device="cpu")
        loaded.set_env(opened(one, [cart_pole] * N_ENVS))
        loaded.set_random_seed(5)
        models.append(loaded.learn(2 * 64 * N_ENVS, reset_num_timesteps=False))
    assert_same_models(*models)


@kinds()
def test_evaluation(kind: str, opened: Open) -> None:
    """``evaluate_policy`` takes the episodes that ``Monitor`` reports."""
    found = []
    for one in (kind, "dummy"):
        env = opened(one, [pendulum] * 3)
        env.seed(2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found.append(evaluate_policy(model_on(env), env, 5, return_episode_rewards=True))
    assert found[0] == found[1]
    assert found[0][1] == [50] * 5


@kinds()
def test_evaluation_during_learning(kind: str, opened: Open, tmp_path: Path) -> None:
    """``EvalCallback`` on environments of the kind, learning on others of it."""
    results = []
    for one in (kind, "dummy"):
        env = opened(one, [pendulum] * 2)
        env.seed(7)
        callback = EvalCallback(env, n_eval_episodes=3, eval_freq=64, log_path=str(tmp_path / one), verbose=0)
        model_on(opened(one, [pendulum] * N_ENVS)).learn(2 * 64 * N_ENVS, callback)
        results.append(np.load(tmp_path / one / "evaluations.npz"))
    assert results[0]["results"].shape == (2, 3)
    for name in ("timesteps", "results", "ep_lengths"):
        np.testing.assert_array_equal(results[0][name], results[1][name])
