"""States of environments in worker processes, which need no wrapper for them: the vine, and trainings that go on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_trpo_plus import TRPO, TrainingCheckpoint, VineTRPO
from sb3_trpo_plus.envs.vec_snapshots import VecSnapshot
from sb3_trpo_plus.states import check_restorable, get_vec_state, set_vec_state
from tests.conftest import parameters_of
from tests.envs.trajectories import Walk, assert_go_back_and_into_one_another, play_vec, rows_in, vec_actions
from tests.envs.vec.same import same


@pytest.fixture
def made(workers: Callable[..., VecEnv]) -> Callable[..., VecEnv]:
    """By ``make_vec_env``, in workers."""

    def make(env_id: Any, n_envs: int = 3, seed: int = 0, **kwargs: Any) -> VecEnv:
        return make_vec_env(env_id, n_envs, seed=seed, vec_env_cls=workers, **kwargs)  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("env_id", ["CartPole-v1", "HalfCheetah-v4"])
@pytest.mark.filterwarnings("ignore:.*out of date")
def test_environments_go_back_and_into_one_another(made: Callable[..., VecEnv], env_id: str, tmp_path: Path) -> None:
    vec_env = VecFrameStack(VecNormalize(made(env_id, monitor_dir=str(tmp_path))), 2)
    vec_env.reset()
    play_vec(vec_env, vec_actions(vec_env, 10))
    check_restorable(vec_env, 40)
    before = rows_in(tmp_path)
    # The first and the last are in different processes.
    assert_go_back_and_into_one_another(vec_env)
    assert rows_in(tmp_path) == before


def test_states_are_those_of_dummy_vec_env(made: Callable[..., VecEnv]) -> None:
    ours, theirs = made("CartPole-v1"), make_vec_env("CartPole-v1", 3, seed=0)
    for vec_env in (ours, theirs):
        vec_env.reset()
    play_vec(ours, vec_actions(ours, 30))
    VecSnapshot.of(ours).restore(theirs)
    actions = vec_actions(ours, 50, seed=1)
    assert play_vec(theirs, actions) == play_vec(ours, actions)


def test_what_can_not_be_restored_is_said(made: Callable[..., VecEnv]) -> None:
    vec_env = made(Walk, env_kwargs={})
    vec_env.reset()
    with pytest.raises(TypeError, match=r"The state of Walk can't be saved: stream of Walk.*get_state"):
        get_vec_state(vec_env, 1)
    state = get_vec_state(cart_poles := made("CartPole-v1"), 0)
    with pytest.raises(ValueError, match="can't be restored in Walk"):
        set_vec_state(vec_env, 0, state)
    set_vec_state(cart_poles, 1, state)
    vec_env.step(vec_actions(vec_env, 1)[0])


def test_a_vine_is_that_of_dummy_vec_env(made: Callable[..., VecEnv]) -> None:
    found = []
    for make in (make_vec_env, made):
        env = VecNormalize(make("Pendulum-v1", 3, seed=0))
        sizes: Any = {"n_steps": 32, "batch_size": 32, "n_rollout_states": 8, "rollout_length": 5}
        model = VineTRPO("MlpPolicy", env, seed=0, device="cpu", **sizes).learn(400)
        assert model._n_updates >= 1
        found.append((model.num_timesteps, env.obs_rms.mean, parameters_of(model)))
    assert same(found[0][:2], found[1][:2])
    assert all(th.equal(value, found[1][2][name]) for name, value in found[0][2].items())


class Dies(BaseCallback):
    """Stands for the end of a process, within a rollout."""

    def _on_step(self) -> bool:
        if self.num_timesteps > 250:
            raise InterruptedError
        return True


def test_a_training_that_goes_on_ends_as_one_that_was_not_stopped(made: Callable[..., VecEnv], tmp_path: Path) -> None:
    def make(seed: int = 0) -> VecEnv:
        return VecNormalize(made("Pendulum-v1", 3, seed))

    def learn(env: VecEnv, *callbacks: BaseCallback) -> TRPO:
        model = TRPO("MlpPolicy", env, n_steps=32, batch_size=32, n_critic_updates=2, seed=3, device="cpu")
        return model.learn(480, list(callbacks))

    whole = learn(make())
    with pytest.raises(InterruptedError):
        learn(make(), TrainingCheckpoint(tmp_path, seconds=0), Dies())
    resumed = TRPO.resume(tmp_path, make(50), device="cpu")
    assert 0 < resumed.num_timesteps < 250
    resumed.learn(480)
    for one in (resumed, learn(VecNormalize(make_vec_env("Pendulum-v1", 3, seed=0)))):
        assert all(th.equal(value, parameters_of(one)[name]) for name, value in parameters_of(whole).items())
        assert same(one._last_obs, whole._last_obs)
    assert isinstance(one.get_env().unwrapped, DummyVecEnv)
