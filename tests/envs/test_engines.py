"""MuJoCo and ALE are put back in place, with what they draw."""

from collections.abc import Callable

import pytest
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo_plus.states import (
    Restorable,
    branching,
    check_restorable,
    get_state,
    get_vec_state,
    set_state,
    set_vec_state,
)
from tests.envs.trajectories import actions_for, make, play, play_vec, vec_actions


@pytest.mark.parametrize(
    ("name", "kept"),
    [("ALE/Pong-v5", {"ale"}), ("HalfCheetah-v4", {"data", "model", "mujoco_renderer"}), ("Taxi-v", {"P"})],
)
def test_engines_tables_and_spaces_stay_the_same_objects(name: str, kept: set[str]) -> None:
    env = make(name)
    before = {key: getattr(env.unwrapped, key) for key in {"spec", "observation_space", "action_space", *kept}}
    set_state(env, get_state(env))
    assert all(getattr(env.unwrapped, key) is value for key, value in before.items())


def test_a_wrapper_that_reads_the_engine_reads_the_environments_own() -> None:
    env = make("InvertedPendulum-v4")
    env.data = env.unwrapped.data  # type: ignore[attr-defined]
    state = get_state(env)
    play(env, actions_for(env, 3))
    set_state(env, state)
    assert env.data is env.unwrapped.data  # type: ignore[attr-defined]
    assert env.unwrapped.data.time == 0  # type: ignore[attr-defined]


def test_sticky_actions_are_drawn_again_as_they_were() -> None:
    env = make("ALE/Pong-v5")
    state = get_state(env)
    actions = actions_for(env, 25)
    set_state(env, state)
    expected = play(env, actions)
    without = env.unwrapped.clone_state(include_rng=False)  # type: ignore[attr-defined]
    set_state(env, state)
    assert play(env, actions) == expected
    set_state(env, state)
    env.unwrapped.ale.restoreState(without)  # type: ignore[attr-defined]
    assert play(env, actions) != expected


def test_a_mujoco_state_crosses_processes(in_subprocesses: Callable[..., VecEnv]) -> None:
    vec_env = in_subprocesses("InvertedPendulum-v4", 2, wrapper_class=Restorable)
    actions = vec_actions(vec_env, 30)
    with branching(vec_env):
        state = get_vec_state(vec_env, 0)
        expected = play_vec(vec_env, actions)[0]
        set_vec_state(vec_env, 1, state)
        assert play_vec(vec_env, [action[::-1] for action in actions])[1] == expected


@pytest.mark.parametrize("seed", range(6))
def test_what_a_sticky_action_repeats_comes_back(seed: int) -> None:
    """The first action after restoring may be replaced by the one before, which was another one when the state was saved."""
    pytest.importorskip("ale_py")
    vec_env = make_atari_env("ALE/Pong-v5", seed=seed)
    vec_env.reset()
    check_restorable(vec_env)
