"""One environment of a VecEnv goes back alone, records show no trace, and hidden state is found out."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_trpo_plus.states import (
    Restorable,
    branching,
    check_restorable,
    get_vec_state,
    set_vec_state,
)
from tests.conftest import RandomEnv
from tests.envs.trajectories import (
    WRAPPERS,
    PerEnv,
    assert_go_back_and_into_one_another,
    branch,
    make_vec,
    play_vec,
    rows_in,
    vec_actions,
)


@pytest.mark.parametrize("name", WRAPPERS)
def test_one_environment_of_a_vec_env_goes_back_and_the_others_go_on(name: str) -> None:
    vec_env = make_vec(name)
    if isinstance(vec_env, (VecNormalize, VecMonitor)):
        vec_env.training = False
        vec_env.venv.training = False
    state = pickle.loads(pickle.dumps(get_vec_state(vec_env, 1)))
    actions = vec_actions(vec_env, 40, seed=1)
    first = play_vec(vec_env, actions)
    assert any(done for _, _, done, *_ in first[1])
    set_vec_state(vec_env, 1, state)
    others = [pickle.dumps(get_vec_state(vec_env, index).rows) for index in (0, 2)]
    set_vec_state(vec_env, 1, state)
    assert [pickle.dumps(get_vec_state(vec_env, index).rows) for index in (0, 2)] == others
    second = play_vec(vec_env, actions)
    assert second[1] == first[1]
    assert second[0] != first[0]
    assert second[2] != first[2]
    set_vec_state(vec_env, 2, state)
    swapped = [action[[0, 2, 1]] for action in actions]
    assert play_vec(vec_env, swapped)[2] == first[1]


def test_returns_come_back_and_statistics_do_not() -> None:
    vec_env = make_vec("normalised")
    state, before = get_vec_state(vec_env, 1), vec_env.returns.copy()
    play_vec(vec_env, vec_actions(vec_env, 5))
    later, mean = vec_env.returns.copy(), vec_env.obs_rms.mean.copy()
    assert (before != later).all()
    set_vec_state(vec_env, 1, state)
    np.testing.assert_array_equal(vec_env.returns, [later[0], before[1], later[2]])
    np.testing.assert_array_equal(vec_env.obs_rms.mean, mean)


def test_arrays_of_another_length_and_observations_handed_out_stay() -> None:
    vec_env = make_vec("own")
    state = get_vec_state(vec_env, 0)
    play_vec(vec_env, vec_actions(vec_env, 5))
    set_vec_state(vec_env, 0, state)
    assert vec_env.unrelated.tolist() == [16] * 4
    assert vec_env.kept["taken"][:, 0].tolist() == [11, 16, 16]

    stacked = make_vec("stacked")
    state = get_vec_state(stacked, 0)
    observations = stacked.step(vec_actions(stacked, 1)[0])[0]
    kept = observations.copy()
    set_vec_state(stacked, 0, state)
    np.testing.assert_array_equal(observations, kept)


def test_a_state_with_other_vec_env_wrappers_is_refused() -> None:
    vec_env = make_vec("own")
    state = get_vec_state(vec_env, 0)
    with pytest.raises(ValueError, match="PerEnv"):
        set_vec_state(vec_env.venv, 0, state)


def test_branches_leave_nothing_in_records(tmp_path: Path) -> None:
    inner = make_vec_env("CartPole-v1", 2, seed=0, monitor_dir=str(tmp_path))
    with pytest.warns(UserWarning, match="already wrapped"):
        vec_env = VecMonitor(VecNormalize(inner), str(tmp_path / "all"))
    vec_env.reset()
    play_vec(vec_env, vec_actions(vec_env, 50))
    normalize, monitors = vec_env.venv, inner.envs

    def records() -> Any:
        logs = [
            (monitor.get_episode_rewards()[:], monitor.get_episode_lengths()[:], len(monitor.get_episode_times()))
            for monitor in monitors
        ]
        statistics = [normalize.obs_rms.mean.tolist(), normalize.obs_rms.count, normalize.ret_rms.var, normalize.ret_rms.count]
        return rows_in(tmp_path), logs, statistics, vec_env.episode_count, inner.reset_infos[:], normalize.returns.tolist()

    inner.reset_infos = [{"number": 0}, {"number": 1}]
    before = records()
    assert min(before[0]) > 0
    with branching(vec_env):
        branch(vec_env)
        with branching(vec_env):
            branch(vec_env)
        branch(vec_env)
    assert records() == before
    with pytest.raises(AssertionError, match="no episode ends"), branching(vec_env):
        branch(vec_env, 3)
    assert records()[:4] == before[:4]
    play_vec(vec_env, vec_actions(vec_env, 50))
    after = records()
    assert (np.array(after[0]) > before[0]).all()
    assert normalize.training
    assert after[2] != before[2]
    assert len(monitors[0].get_episode_times()) == len(monitors[0].get_episode_rewards()) > len(before[1][0][0])


def test_a_state_saved_within_a_branch_and_restored_outside_keeps_the_file_writing(tmp_path: Path) -> None:
    vec_env = make_vec_env("CartPole-v1", 1, seed=0, monitor_dir=str(tmp_path))
    vec_env.reset()
    outside = get_vec_state(vec_env, 0)
    with branching(vec_env):
        inside = get_vec_state(vec_env, 0)
        set_vec_state(vec_env, 0, outside)
        branch(vec_env)
    for state in (inside, outside):
        set_vec_state(vec_env, 0, state)
        before = rows_in(tmp_path)
        play_vec(vec_env, vec_actions(vec_env, 60))
        assert rows_in(tmp_path) > before


def test_environments_in_other_processes(in_subprocesses: Callable[..., VecEnv], tmp_path: Path) -> None:
    bare = in_subprocesses("CartPole-v1", 2, wrapper_class=Restorable, monitor_dir=str(tmp_path))
    vec_env = VecFrameStack(VecNormalize(bare), 2)
    vec_env.reset()
    play_vec(vec_env, vec_actions(vec_env, 10))
    check_restorable(vec_env, 60)
    before = rows_in(tmp_path)
    # Each in the other's process.
    assert_go_back_and_into_one_another(vec_env)
    assert rows_in(tmp_path) == before
    play_vec(vec_env, vec_actions(vec_env, 60))
    assert (np.array(rows_in(tmp_path)) > before).all()


@pytest.mark.parametrize("wrap", [None, lambda env: Monitor(Restorable(env))])
def test_restorable_has_to_be_outermost_in_other_processes(wrap: Any, in_subprocesses: Callable[..., VecEnv]) -> None:
    vec_env = in_subprocesses("CartPole-v1", wrapper_class=wrap)
    for use in (lambda: get_vec_state(vec_env, 0), lambda: check_restorable(vec_env), lambda: branching(vec_env).__enter__()):
        with pytest.raises(TypeError, match="wrapper_class=Restorable"):
            use()
    vec_env.step(vec_actions(vec_env, 1)[0])


class Hidden(RandomEnv):
    """Counts its steps outside of itself, as an environment in a server does."""

    elsewhere: ClassVar[dict[int, int]] = {}

    def __init__(self, number: int, where: str) -> None:
        super().__init__(spaces.Box(-2.0, 2.0, (4,)), spaces.Discrete(2))
        self.number, self.where = number, where
        self.elsewhere[number] = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, truncated, info = super().step(action)
        count = self.elsewhere[self.number] = self.elsewhere[self.number] + 1
        if self.where == "observation" or (self.where == "last observation" and truncated):
            observation[0] = count
        return observation, reward + count * (self.where == "reward"), self.where == "end" and count % 7 == 0, truncated, info


@pytest.mark.parametrize(("where", "n_steps"), [("observation", 10), ("last observation", 20), ("reward", 10), ("end", 10)])
@pytest.mark.parametrize("number", [0, 1])
def test_hidden_state_is_found_out(where: str, n_steps: int, number: int) -> None:
    vec_env = DummyVecEnv([lambda i=i: Hidden(i, where if i == number else "nowhere") for i in range(2)])  # type: ignore[misc]
    vec_env.seed(0)
    vec_env.reset()
    with pytest.raises(ValueError, match=r"Hidden does not come back exactly .*get_state\(\) and set_state\(state\)"):
        check_restorable(vec_env, n_steps)
    assert n_steps < Hidden.elsewhere[number] <= 2 * n_steps
    assert [env.steps for env in vec_env.envs] == [0, 0]
    check_restorable(DummyVecEnv([lambda: vec_env.envs[1 - number]]))


def test_a_wrapper_that_forgets_is_found_out() -> None:
    class Forgets(PerEnv):
        def step_wait(self) -> Any:
            observations, rewards, dones, infos = super().step_wait()
            return observations, rewards + self.unrelated[0], dones, infos

    vec_env = Forgets(make_vec("own").venv)
    with pytest.raises(ValueError, match="CartPole-v1 does not come back exactly"):
        check_restorable(vec_env)


@pytest.mark.parametrize("name", WRAPPERS)
def test_environments_that_were_checked_go_on_as_if_they_were_not(name: str) -> None:
    checked, unchecked = make_vec(name), make_vec(name)
    check_restorable(checked, 40)
    actions = vec_actions(checked, 40, seed=1)
    seen = play_vec(checked, actions)
    if name == "own":
        checked.unrelated[:] = unchecked.unrelated[:]
    assert seen == play_vec(unchecked, actions)


def test_nothing_is_drawn_from_the_users_generators() -> None:
    vec_env = make_vec("normalised")
    vec_env.action_space.seed(0)
    np.random.seed(0)
    check_restorable(vec_env)
    drawn = vec_env.action_space.sample(), np.random.rand()
    vec_env.action_space.seed(0)
    np.random.seed(0)
    np.testing.assert_array_equal(drawn[0], vec_env.action_space.sample())
    assert drawn[1] == np.random.rand()
