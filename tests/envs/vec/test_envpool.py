"""``EnvPoolVecEnv`` beside Gymnasium's dynamics and EnvPool itself: each of EnvPool's traps."""

import copy
import gc
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.envs.vec import EnvPoolVecEnv, make_envpool_vec
from tests.contract.vec_envs import assert_equal, one_of
from tests.envs.vec.cart_poles import steps_as_alone

envpool = pytest.importorskip("envpool")

# One of each family for which the limit is kept here, which are many kinds of spaces and infos too.
TASKS = (
    "CartPole-v1", "Pendulum-v1", "HalfCheetah-v4", "Hopper-v4", "BipedalWalker-v3", "LunarLander-v3", "FrozenLake-v1",
    "Blackjack-v1", "CheetahRun-v1", "FetchReach-v4", "MetaWorld/Assembly-v3", "Breakout-v5",
)  # fmt: skip


def actions_of(env: EnvPoolVecEnv, n_steps: int) -> list[np.ndarray]:
    env.action_space.seed(0)
    return [np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(n_steps)]


def played(env: EnvPoolVecEnv, n_steps: int) -> list[Any]:
    """What a reset and steps with random actions return, but for the times of episodes."""
    returned: list[Any] = [env.reset()]
    for action in actions_of(env, n_steps):
        *arrays, infos = env.step(action)
        for info in infos:
            info.get("episode", {}).pop("t", None)
        returned.append((*arrays, list(infos)))
    return returned


@pytest.mark.parametrize("limit", [12, None])
def test_cart_poles_obey_the_dynamics_of_cart_pole(limit: int | None) -> None:
    """
    A step is that of Gymnasium's environment from the last observation: in every row with many threads, also the first after
    a reset (it takes its action) and the last of an episode (it is of that episode, and not of the next).
    """
    env, ended, cut = EnvPoolVecEnv("CartPole-v1", 32, seed=1, num_threads=8, max_episode_steps=limit), 0, 0
    for _, _, dones, infos in steps_as_alone(env, actions_of(env, 60), limit, 1e-5):
        for index in np.flatnonzero(dones):
            assert env.reset_infos[index] == {"elapsed_step": 0}
            ended, cut = ended + 1, cut + infos[index]["TimeLimit.truncated"]
    assert ended > 20
    assert (cut > 0) == (limit == 12)


@pytest.mark.parametrize("task", ["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4", "InvertedPendulum-v4"])
def test_mujoco_steps_as_gymnasium_does(task: str) -> None:
    """Their observations are positions, but for the horizontal one of those that move, and velocities within 10."""
    env, alone = EnvPoolVecEnv(task, 4, seed=0), gym.make(task).unwrapped
    alone.reset()
    before, compared = env.reset(), 0
    for actions in actions_of(env, 25):
        after, rewards, _, infos = env.step(actions)
        for index in range(4):
            at = np.split(before[index], [alone.model.nq - (task != "InvertedPendulum-v4")])
            if np.abs(at[1]).max() < 10:
                alone.set_state(np.append(np.zeros(alone.model.nq - at[0].size), at[0]), at[1])
                expected, reward, terminated, *_ = alone.step(actions[index])
                got = infos[index].get("terminal_observation", after[index])
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
                np.testing.assert_allclose(rewards[index], reward, rtol=0, atol=1e-5)
                assert ("terminal_observation" in infos[index]) == terminated
                compared += 1
        before = after
    assert compared > 20


def test_a_termination_at_the_last_allowed_step_is_one() -> None:
    """Always to the right: the pole falls after so many steps, and a limit of as many, or one fewer, is set."""

    def first_end(limit: int | None) -> tuple[int, dict[str, Any]]:
        env = EnvPoolVecEnv("CartPole-v1", 1, seed=3, max_episode_steps=limit)
        env.reset()
        for step in range(1, 100):
            _, _, dones, infos = env.step(np.ones(1, int))
            if dones[0]:
                return step, infos[0]
        raise AssertionError("the pole did not fall")

    falls, info = first_end(None)
    assert falls < 20
    assert not info["TimeLimit.truncated"]
    at_limit, info_at_limit = first_end(falls)
    assert (at_limit, info_at_limit["TimeLimit.truncated"]) == (falls, False)
    np.testing.assert_array_equal(info_at_limit["terminal_observation"], info["terminal_observation"])
    earlier, info_earlier = first_end(falls - 1)
    assert (earlier, info_earlier["TimeLimit.truncated"]) == (falls - 1, True)


@pytest.mark.parametrize("task", TASKS)
def test_the_limit_is_nothing_else(task: str) -> None:
    """Everything is as EnvPool has it with its own limit, up to the end of the first episodes, which may be at the limit."""
    limit = min(envpool.make_spec(task).config.max_episode_steps, 40)
    ours = EnvPoolVecEnv(task, 2, seed=5, num_threads=1, max_episode_steps=limit)
    itself = envpool.make_gymnasium(task, num_envs=2, seed=5, num_threads=1, max_episode_steps=limit)
    running = np.ones(2, bool)

    def same(one: Any, other: Any) -> None:
        if isinstance(one, dict):
            for key in one:
                same(one[key], other[key])
        else:
            np.testing.assert_array_equal(one[running], np.asarray(other)[running])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of EnvPool, about bounds
        same(ours.reset(), itself.reset()[0])
    for action in actions_of(ours, limit):
        observations, rewards, dones, infos = ours.step(action)
        its, its_rewards, terminated, truncated, _ = itself.step(action)
        np.testing.assert_array_equal(dones[running], (terminated | truncated)[running])
        np.testing.assert_array_equal(rewards[running], its_rewards.astype(np.float32)[running])
        for index in np.flatnonzero(running & terminated):
            assert not infos[index]["TimeLimit.truncated"]
        running &= ~dones
        same(observations, its)
    assert not running.any()


@pytest.mark.parametrize("task", TASKS)
def test_spaces_hold_what_is_observed_and_nothing_is_warned_of(task: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = EnvPoolVecEnv(task, 2, seed=0)
        observations, dones = env.reset(), None
        for action in actions_of(env, 20):
            for index in range(2):
                assert env.observation_space.contains(one_of(observations, index))
            observations, rewards, dones, _ = env.step(action)
    assert rewards.dtype == np.float32
    assert dones is not None
    assert dones.dtype == bool


@pytest.mark.parametrize(
    "task",
    ["CartPole-v1", "Acrobot-v1", "MountainCarContinuous-v0", "Pendulum-v1", "FrozenLake-v1", "HalfCheetah-v4", "Ant-v5"],
)
def test_spaces_are_those_of_gymnasium(task: str) -> None:
    """So that a model that was trained in one can be loaded with the other."""
    env, single = EnvPoolVecEnv(task), gym.make(task)
    assert env.observation_space == single.observation_space
    assert env.action_space == single.action_space


def test_a_model_trained_in_envpool_goes_on_in_gymnasium(tmp_path: Path) -> None:
    TRPO("MlpPolicy", make_envpool_vec("HalfCheetah-v4", 2), n_steps=32, batch_size=64).learn(64).save(tmp_path / "model.zip")
    model = TRPO.load(tmp_path / "model.zip", env=make_vec_env("HalfCheetah-v4", 2))
    assert model.learn(64, reset_num_timesteps=False).num_timesteps == 128


def test_a_humanoid_feels_the_ground() -> None:
    """The numbers of an observation that are not always 0 are those of Gymnasium's: they include the forces of contacts."""
    env, single = EnvPoolVecEnv("Humanoid-v4", 4, seed=0), gym.make("Humanoid-v4")
    ours, theirs = [env.reset()], [single.reset(seed=0)[0]]
    for actions in actions_of(env, 100):
        ours.append(env.step(actions)[0])
        for action in actions:
            observation, _, terminated, *_ = single.step(action)
            theirs.append(single.reset()[0] if terminated else observation)
    felt = np.abs(np.stack(theirs)).max(0) > 0
    forces = np.arange(felt.size) >= felt.size - 84
    assert (felt & forces).any()
    np.testing.assert_array_equal((np.abs(np.concatenate(ours)).max(0) > 0)[~forces], felt[~forces])
    assert np.abs(np.concatenate(ours))[:, forces].max() > 100


def test_a_reward_that_depends_on_the_limit_is_of_that_limit() -> None:
    """MiniGrid's reward is 1 - 0.9 steps / limit; the way to the goal is two steps ahead, a turn and two steps."""
    forward, right = 2, 1
    for limit in (None, 10):
        env = EnvPoolVecEnv("MiniGrid-Empty-5x5-v0", 2, seed=0, max_episode_steps=limit)
        env.reset()
        for action in (forward, forward, right, forward, forward):
            _, rewards, dones, infos = env.step(np.full(2, action))
        assert dones.all()
        np.testing.assert_allclose(rewards, 1 - 0.9 * 5 / (limit or 100), rtol=1e-6)
        assert not infos[0]["TimeLimit.truncated"]
    lengths = [
        infos[0]["episode"]["l"] for _ in range(20) for infos in [env.step(np.zeros(2, int))[3]] if "episode" in infos[0]
    ]
    assert lengths == [10, 10]


@pytest.mark.parametrize("task", ["CartPole-v1", "Hopper-v4"])
def test_seeds(task: str) -> None:
    """The same seed gives the same episodes, at the start and later; environment i has seed + i; others have others."""
    expected = played(EnvPoolVecEnv(task, 3, seed=4, num_threads=2), 60)
    assert_equal(played(EnvPoolVecEnv(task, 3, seed=4, num_threads=1), 60), expected)
    env = EnvPoolVecEnv(task, 3, seed=9)
    other = played(env, 60)
    assert not np.array_equal(other[0], expected[0])
    assert env.seed(4) == [4, 5, 6]
    assert_equal(played(env, 60), expected)
    np.testing.assert_array_equal(EnvPoolVecEnv(task, 1, seed=6).reset()[0], expected[0][2])
    assert not np.array_equal(env.reset(), expected[0]), "seeds are for one reset"


def test_seeds_that_are_not_given_or_large() -> None:
    def first() -> Any:
        return EnvPoolVecEnv("CartPole-v1", 2).reset()

    np.random.seed(0)
    drawn = first()
    assert not np.array_equal(first(), drawn)
    np.random.seed(0)
    np.testing.assert_array_equal(first(), drawn)
    env = EnvPoolVecEnv("CartPole-v1", 2, seed=2**32 - 1)
    assert env.reset().shape == (2, 4)


def test_nothing_returned_earlier_changes() -> None:
    env = EnvPoolVecEnv("CartPole-v1", 8, seed=2)
    kept = played(env, 40)
    copies = copy.deepcopy(kept)
    for _ in range(3):
        played(env, 40)
    assert_equal(kept, copies)


def test_actions_are_cast_and_their_shape_is_checked() -> None:
    def stepped(dtype: Any) -> Any:
        env = EnvPoolVecEnv("HalfCheetah-v4", 2, seed=0)
        env.reset()
        return env.step(np.full((2, 6), 0.5, dtype))[0]

    np.testing.assert_array_equal(stepped(np.float32), stepped(np.float64))
    assert stepped(np.float32).dtype == np.float64
    env = EnvPoolVecEnv("CartPole-v1", 3)
    with pytest.raises(RuntimeError, match="no environments before reset"):
        env.step(np.zeros(3, int))
    env.reset()
    for wrong in (np.zeros(2, int), np.zeros((3, 1), int), 0):
        with pytest.raises(ValueError, match=r"actions must have the shape \(3,\), not"):
            env.step(wrong)
    assert env.step([0, 1, 0])[0].shape == (3, 4)


def test_closing_ends_the_threads() -> None:
    def threads() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/task"))

    if not Path("/proc/self/task").exists():
        pytest.skip("threads are counted on Linux")
    before = threads()
    env = EnvPoolVecEnv("CartPole-v1", 4, num_threads=3)
    assert threads() == before, "none before they are needed"
    env.reset()
    during = threads()
    assert during > before
    env.seed(1)
    env.reset()
    assert threads() == during, "seeds replace the threads"
    env.close()
    env.close()
    assert threads() == before
    with pytest.raises(RuntimeError, match="nor after close"):
        env.step(np.zeros(4, int))


def test_attributes_that_environments_have_not() -> None:
    env = EnvPoolVecEnv("CartPole-v1", 3)
    assert env.get_attr("render_mode") == [None] * 3
    assert env.get_attr("spec", 1)[0].config.reward_threshold == 475
    assert not env.has_attr("gravity")
    assert env.leaves_interpreter_free
    for call in (lambda: env.get_attr("gravity"), lambda: env.set_attr("gravity", 1), lambda: env.env_method("reset")):
        with pytest.raises(AttributeError, match="EnvPool"):
            call()
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert EnvPoolVecEnv("CartPole-v1", monitor=False).env_is_wrapped(Monitor) == [False]
    env.set_options({})
    with pytest.raises(ValueError, match=r"set_options: .* were given \{'low': 1\}"):
        env.set_options({"low": 1})
    env.reset()


def test_rendering() -> None:
    # MuJoCo's would end the process where there is no OpenGL.
    env = make_envpool_vec("CartPole-v1", 2, seed=0, env_kwargs={"render_mode": "rgb_array"})
    env.reset()
    images = env.get_images()
    assert [image.shape for image in images] == [(400, 600, 3)] * 2
    assert not np.array_equal(*images)
    tiled = env.render()
    assert tiled is not None
    np.testing.assert_array_equal(tiled, np.concatenate(images))
    with pytest.warns(UserWarning, match="The render mode is None"):
        assert EnvPoolVecEnv("CartPole-v1").get_images() == [None]


def test_what_can_not_be_made() -> None:
    with pytest.raises(ValueError, match=r"no environment 'HalfCheeta-v4'; near it are .*HalfCheetah-v4"):
        EnvPoolVecEnv("HalfCheeta-v4")
    with pytest.raises(ValueError, match=r"no environment '42'; envpool.list_all_envs\(\) has"):
        EnvPoolVecEnv("42")
    with pytest.raises(ValueError, match="Go9x9-v1 is for 2 players"):
        EnvPoolVecEnv("Go9x9-v1")
    with pytest.raises(ValueError, match="batch_size: a step of a VecEnv steps all"):
        EnvPoolVecEnv("CartPole-v1", 4, batch_size=2)
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1, not 0"):
        EnvPoolVecEnv("CartPole-v1", max_episode_steps=0)
    with pytest.raises(TypeError, match=r"HalfCheetah-v4 takes no such option .*mass.* It has .*ctrl_cost_weight"):
        EnvPoolVecEnv("HalfCheetah-v4", mass=3)


def test_without_envpool_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r"needs EnvPool.* pip install 'sb3-trpo-plus\[envpool\]'"):
        make_envpool_vec("CartPole-v1")


def test_options_of_the_task() -> None:
    """A cheetah whose control costs nothing: the reward is the speed alone."""
    env = EnvPoolVecEnv("HalfCheetah-v4", 2, seed=0, ctrl_cost_weight=0.0)
    env.reset()
    _, rewards, _, infos = env.step(np.ones((2, 6)))
    np.testing.assert_allclose(rewards, [info["x_velocity"] for info in infos], rtol=1e-5)
    assert {"env_id", "players"}.isdisjoint(infos[0])


def test_the_file_of_the_statistics(tmp_path: Path) -> None:
    env = make_envpool_vec("CartPole-v1", 3, seed=0, monitor_dir=str(tmp_path / "new"), env_kwargs={"max_episode_steps": 5})
    env.reset()
    for _ in range(11):
        env.step(np.zeros(3, int))
    env.close()
    assert list(load_results(str(tmp_path / "new")).l) == [5] * 6


def test_learning_beneath_sb3s_wrappers() -> None:
    """Twice the same with the same seed; the mean of returns that is logged is of unnormalised rewards."""

    def learned() -> TRPO:
        env = VecNormalize(make_envpool_vec("Pendulum-v1", 8, env_kwargs={"max_episode_steps": 16}), gamma=0.9)
        return TRPO("MlpPolicy", env, n_steps=32, batch_size=64, gamma=0.9, seed=3).learn(512)

    one, other = learned(), learned()
    for mine, its in zip(one.policy.parameters(), other.policy.parameters(), strict=True):
        np.testing.assert_array_equal(mine.detach(), its.detach())
    assert len(one.ep_info_buffer) == 32
    assert max(info["r"] for info in one.ep_info_buffer) < -1
    assert all(info["l"] == 16 for info in one.ep_info_buffer)
    evaluation = one.get_vec_normalize_env()
    assert evaluation is not None
    evaluation.training = False
    _, lengths = evaluate_policy(one, evaluation, 8, return_episode_rewards=True)
    assert lengths == [16] * 8
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        env = VecMonitor(EnvPoolVecEnv("CartPole-v1", 2, seed=0, max_episode_steps=4))
    env.reset()
    infos = [info for _ in range(8) for info in env.step(np.zeros(2, int))[3]]
    assert [info["episode"]["l"] for info in infos if "episode" in info] == [4] * 4
