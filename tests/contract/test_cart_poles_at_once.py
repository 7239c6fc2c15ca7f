"""
The VecEnvs whose environments no Python steps one by one: Gymnasium's vector environment of CartPole, and EnvPool's CartPole.

Of CartPole an observation is all of the state, so that Gymnasium's own environment says what must follow from it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.envs.vec import make_envpool_vec, make_gymnasium_vec
from tests.contract.vec_envs import assert_equal

MAKERS: dict[str, Callable[..., Any]] = {"gymnasium": make_gymnasium_vec, "envpool": make_envpool_vec}
N = 5
LIMIT = 30


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., VecEnv]]:
    if request.param == "envpool":
        pytest.importorskip("envpool")
    there: list[VecEnv] = []

    def one(**kwargs: Any) -> VecEnv:
        there.append(MAKERS[request.param]("CartPole-v1", N, **{"env_kwargs": {"max_episode_steps": LIMIT}, **kwargs}))
        return there[-1]

    yield one
    for env in there:
        env.close()


def balancing(observations: np.ndarray) -> np.ndarray:
    """Actions that hold the pole for long in some environments; the first one falls."""
    actions = (observations[:, 2] + 0.5 * observations[:, 3] > 0).astype(np.int64)
    actions[0] = 1
    return actions


def test_each_step_is_that_of_the_single_environment(make: Callable[..., VecEnv]) -> None:
    """
    Observations, the last ones of episodes among them, terminations and truncations follow from the observation before.

    EnvPool computes in float32, and observations are float32's in both; where the state is that near to where the pole counts
    as fallen, either will do.
    """
    single: Any = gym.make("CartPole-v1").unwrapped
    env = make(seed=3)
    before, lengths, returns = env.reset(), np.zeros(N, int), np.zeros(N)
    ends = {"cut off": 0, "fallen": 0}
    for _ in range(120):
        actions = balancing(before)
        observations, rewards, dones, infos = env.step(actions)
        assert (observations.dtype, rewards.dtype, dones.dtype) == (np.float32, np.float32, np.dtype(bool))
        lengths += 1
        returns += rewards
        assert rewards.tolist() == [1.0] * N
        for index in range(N):
            single.reset()
            single.state = before[index].astype(np.float64)
            expected, _, fallen, *_ = single.step(int(actions[index]))
            info = infos[index]
            after = info["terminal_observation"] if dones[index] else observations[index]
            np.testing.assert_allclose(after, expected, atol=1e-5)
            position, _, angle, _ = np.abs(expected)
            if min(abs(position - 2.4), abs(angle - single.theta_threshold_radians)) > 1e-5:
                assert dones[index] == (fallen or lengths[index] == LIMIT)
                assert info.get("TimeLimit.truncated", False) == (dones[index] and not fallen)
            if dones[index]:
                ends["fallen" if fallen else "cut off"] += 1
                assert np.all(np.abs(observations[index]) <= 0.05)
                assert (info["episode"]["r"], info["episode"]["l"]) == (returns[index], lengths[index])
                lengths[index], returns[index] = 0, 0
        before = observations
    assert min(ends.values()) > 3


def test_nothing_returned_earlier_changes(make: Callable[..., VecEnv]) -> None:
    """Arrays and last observations are the caller's."""
    env = make(seed=1)
    kept: list[Any] = [env.reset()]
    for _ in range(40):
        observations, rewards, dones, infos = env.step(np.ones(N, np.int64))
        kept.append([observations, rewards, dones, *(infos[i]["terminal_observation"] for i in np.flatnonzero(dones))])
        if len(kept) == 20:
            copies = [np.copy(part) for part in kept[-1]]
    assert_equal(kept[19], copies)
    assert any(len(one) > 3 for one in kept[1:20])
    arrays = [part for one in kept[1:] for part in one]
    for index, array in enumerate(arrays):
        assert not any(np.shares_memory(array, other) for other in arrays[index + 1 :])


def test_seeds(make: Callable[..., VecEnv]) -> None:
    """The same seed, the same way; another one, another way; every environment its own."""
    env = make()
    first = []
    for seed in (4, 5, 4):
        assert list(env.seed(seed)) == list(range(seed, seed + N))
        steps = [env.reset()]
        steps += [env.step(np.ones(N, np.int64))[0] for _ in range(25)]
        first.append(np.stack(steps))
    assert_equal(first[0], first[2])
    assert not np.any(np.all(first[0] == first[1], axis=-1))
    assert len(np.unique(first[0][0], axis=0)) == N
    assert not np.any(np.all(env.reset() == first[0][0], axis=-1))


def test_what_is_said_of_the_environments(make: Callable[..., VecEnv]) -> None:
    """As good as wrapped in ``Monitor``; unknown attributes raise AttributeErrors, on which SB3's wrappers rely."""
    env = make()
    assert env.env_is_wrapped(Monitor) == [True] * N
    assert not env.has_attr("nobody_has_this")
    with pytest.raises(AttributeError, match="nobody_has_this"):
        env.env_method("nobody_has_this")
    env.close()
    env.close()


def test_learning_and_evaluation(make: Callable[..., VecEnv], tmp_path: Path) -> None:
    """Twice with a seed it is the same to the bit, with normalisation; episodes are written as ``Monitor`` writes them."""
    models = []
    for number in range(2):
        env = VecNormalize(make(monitor_dir=str(tmp_path / str(number))))
        models.append(TRPO("MlpPolicy", env, n_steps=128, seed=2, device="cpu").learn(3 * 128 * N))
    for mine, theirs in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.equal(mine, theirs)
    episodes = load_results(str(tmp_path / "0"))
    assert len(episodes) > 50
    assert (episodes["r"] == episodes["l"]).all()
    assert episodes["l"].max() <= LIMIT
    returns, lengths = evaluate_policy(models[0], make(), 6, return_episode_rewards=True)
    assert returns == [float(length) for length in lengths]  # type: ignore[union-attr]
