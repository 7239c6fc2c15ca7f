"""Environments put back into a state: the same actions give the same trajectory to the bit."""

import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo_plus.states import Restorable, check_restorable, get_state, get_vec_state, set_state
from tests.envs.trajectories import ATARI, FAST, MUJOCO, Env, Walk, actions_for, bits, make, play, play_vec, vec_actions


@pytest.mark.parametrize("name", [*MUJOCO, *ATARI, *FAST])
def test_same_actions_after_restoring_give_the_same_trajectory(name: str) -> None:
    env, other = make(name), make(name, seed=1)
    play(env, actions_for(env, 12, seed=1))
    state = get_state(env)
    actions = actions_for(env, 40, seed=2)
    expected = play(env, actions)
    assert len(expected) > 40, "an episode ends, and the next one begins as it did"
    assert play(env, actions) != expected, "else nothing would be seen here"
    env.reset(seed=5)
    play(env, actions_for(env, 7, seed=3))
    for _ in range(2):
        set_state(env, state)
        assert play(env, actions) == expected
    play(other, actions_for(other, 3, seed=4))
    set_state(other, pickle.loads(pickle.dumps(state)))
    assert play(other, actions) == expected
    set_state(env, state)
    play(other, actions)
    assert play(env, actions) == expected, "the two share nothing"


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from([*FAST, "random of class"]), before=st.integers(0, 40), detour=st.integers(0, 40), data=st.data())
def test_restored_from_anywhere_at_any_time(name: str, before: int, detour: int, data: st.DataObject) -> None:
    env = make(name, seed=data.draw(st.sampled_from([None, 0, 1])))
    play(env, actions_for(env, before, seed=data.draw(st.integers(0, 9))))
    state = get_state(env)
    actions = actions_for(env, 35, seed=data.draw(st.integers(0, 9)))
    expected = play(env, actions)
    play(env, actions_for(env, detour))
    set_state(env, state)
    assert play(env, actions) == expected


class Own(Walk):
    """Restores itself, with what get_state() returns still in use."""

    def get_state(self) -> Any:
        return self.position

    def set_state(self, state: Any) -> None:
        self.position = state


def test_an_environment_with_methods_of_its_own_is_asked() -> None:
    env = gym.wrappers.TimeLimit(Own(), 30)
    env.reset()
    play(env, [1, 1, 0])
    state = get_state(env)
    expected = play(env, [1] * 9)
    for _ in range(2):
        set_state(env, state)
        assert play(env, [1] * 9) == expected
    set_state(env, state)
    assert env._elapsed_steps == 3


def test_a_wrapper_with_methods_of_its_own_answers_for_all_beneath() -> None:
    class Answers(gym.Wrapper[Any, Any, Any, Any]):
        def get_state(self) -> Any:
            return [self.unwrapped.position[0]]  # type: ignore[attr-defined]

        def set_state(self, state: Any) -> None:
            self.unwrapped.position = state  # type: ignore[attr-defined]

    env = Monitor(Answers(gym.wrappers.TimeLimit(Own(), 30)))
    env.reset()
    state = get_state(env)
    play(env, [1, 1])
    set_state(env, state)
    assert (env.unwrapped.position, env.rewards, env.env.env._elapsed_steps) == ([0], [], 2)


def test_set_state_of_positions_and_velocities_is_not_the_protocol() -> None:
    class Positions(type(gym.make("InvertedPendulum-v4").unwrapped)):  # type: ignore[misc]
        def get_state(self) -> Any:
            raise AssertionError

    env: Env = Positions()
    env.reset(seed=0)
    state = get_state(env)
    actions = actions_for(env, 5)
    expected = play(env, actions)
    set_state(env, state)
    assert play(env, actions) == expected


def test_a_state_of_something_else_is_refused() -> None:
    state = get_state(make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"CartPoleEnv can't be restored in Pendulum-v1"):
        set_state(make("Pendulum-v1"), state)


@pytest.mark.parametrize("name", ["LunarLander-v3", "BipedalWalker-v3"])
def test_box2d_is_named_in_the_error(name: str) -> None:
    pytest.importorskip("Box2D")
    env = gym.make(name)
    env.reset(seed=0)
    with pytest.raises(TypeError, match=rf"{name} can't be saved: world .* get_state\(\) and set_state\(state\)"):
        get_state(env)
    vec_env = make_vec_env(name, 1, seed=0)
    vec_env.reset()
    with pytest.raises(TypeError, match=name):
        check_restorable(vec_env)


def test_the_methods_of_restorable(in_subprocesses: Callable[..., VecEnv]) -> None:
    vec_env = in_subprocesses("CartPole-v1", wrapper_class=Restorable)
    (state,) = vec_env.env_method("get_state", indices=0)
    actions = vec_actions(vec_env, 12)
    expected = play_vec(vec_env, actions)[0]
    vec_env.env_method("set_state", state, indices=0)
    assert play_vec(vec_env, actions)[0] == expected
    alone = Monitor(gym.make("CartPole-v1", render_mode="rgb_array"))
    set_state(alone, state)
    observation = alone.step(actions[0][0])[0]
    assert {"": bits(observation)} == expected[0][0]


def test_an_error_in_another_process_does_not_end_it(in_subprocesses: Callable[..., VecEnv]) -> None:
    pytest.importorskip("Box2D")
    vec_env = in_subprocesses("LunarLander-v3", wrapper_class=Restorable)
    with pytest.raises(TypeError, match=r"LunarLander-v3 can't be saved: world"):
        get_vec_state(vec_env, 0)
    (error,) = vec_env.env_method("attempt", divide_by_zero)
    assert type(error) is RuntimeError
    assert str(error) == "ZeroDivisionError: no"
    vec_env.step(vec_actions(vec_env, 1)[0])


def divide_by_zero(env: Env) -> None:
    raise ZeroDivisionError("no")


def test_an_uncopyable_attribute_is_named() -> None:
    with pytest.raises(TypeError, match="Walk can't be saved: stream of Walk, a callable_iterator, can't be copied"):
        get_state(Walk())
