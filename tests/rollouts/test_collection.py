"""Fast collection against SB3's own: the same buffer, the same contract, the right distribution of actions."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import SubprocVecEnv
from torch import nn

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.rollouts import acting
from sb3_trpo_plus.rollouts.frozen import FrozenPolicy
from tests.conftest import ACTION_SPACES, DISTRIBUTIONS, collect, random_env
from tests.rollouts.conftest import (
    OBSERVATION_SPACES,
    AtStep,
    Mixed,
    NormTanh,
    Recorder,
    assert_same_buffers,
    collect_with,
    force_general_path,
    make,
    replay,
)


def assert_same_observations(ours: Any, theirs: Any) -> None:
    for one, other in [(ours[key], theirs[key]) for key in theirs] if isinstance(theirs, dict) else [(ours, theirs)]:
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "observation_space"),
    [(name, "box") for name in DISTRIBUTIONS] + [("discrete", space) for space in OBSERVATION_SPACES] + [("box", "image")],
)
@pytest.mark.parametrize("activation", [nn.Tanh, NormTanh])
def test_buffer_is_the_one_that_sb3_fills_with_the_same_actions(
    name: str, observation_space: str, activation: type[nn.Module]
) -> None:
    kwargs = {"policy_kwargs": {**DISTRIBUTIONS[name][1].get("policy_kwargs", {}), "activation_fn": activation}}
    fast, slow = make(name, observation_space, **kwargs), make(name, observation_space, **kwargs)
    assert FrozenPolicy.of(fast.policy) is not None
    recorder = Recorder()
    assert collect_with(fast, TRPO.collect_rollouts, recorder)
    replay(slow, [np.array(seen["actions"]) for seen in recorder.seen])
    assert collect_with(slow, OnPolicyAlgorithm.collect_rollouts)
    truncated = [info.get("TimeLimit.truncated", False) for seen in recorder.seen for info in seen["infos"]]
    done = [done for seen in recorder.seen for done in seen["dones"]]
    assert sum(done) > sum(truncated) > 0, "both kinds of ends occur"
    assert_same_buffers(fast.rollout_buffer, slow.rollout_buffer)
    assert fast.num_timesteps == slow.num_timesteps == 120
    assert_same_observations(fast._last_obs, slow._last_obs)
    assert (fast._last_episode_starts == slow._last_episode_starts).all()
    assert [e["r"] for e in fast.ep_info_buffer] == pytest.approx([e["r"] for e in slow.ep_info_buffer])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_callbacks_see_the_same_locals(name: str) -> None:
    fast, slow = make(name), make(name)
    ours, theirs = Recorder(), Recorder()
    collect_with(fast, TRPO.collect_rollouts, ours)
    replay(slow, [np.array(seen["actions"]) for seen in ours.seen])
    collect_with(slow, OnPolicyAlgorithm.collect_rollouts, theirs)
    fast.train()  # what was kept must not depend on the policy as it is later
    for step, (one, other) in enumerate(zip(ours.seen, theirs.seen, strict=True)):
        only_after_truncations = {"idx", "done", "terminal_obs", "terminal_value"}
        assert set(other) - set(one) <= only_after_truncations
        for key in ("obs_tensor", "values", "log_probs"):
            assert one[key].shape == other[key].shape
            th.testing.assert_close(th.clone(one[key]), other[key], rtol=1e-4, atol=1e-5)
        for key in ("actions", "clipped_actions", "rewards", "dones", "new_obs"):
            assert one[key].dtype == other[key].dtype or key == "actions"
            # Both loops reshape discrete actions, and this sb3 one does so after the callback.
            np.testing.assert_allclose(one[key], np.array(other[key]).reshape(one[key].shape), rtol=1e-5, atol=1e-6)
        assert one["n_steps"] == other["n_steps"] == step


def test_values_can_be_looked_at_in_the_step_itself() -> None:
    model = make()
    looked: list[th.Tensor] = []

    class Looks(BaseCallback):
        def _on_step(self) -> bool:
            looked.append(self.locals["values"].clone())
            return True

    collect_with(model, TRPO.collect_rollouts, Looks())
    np.testing.assert_allclose(th.stack(looked)[..., 0], model.rollout_buffer.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stop_at", [1, 7, 25])
def test_callback_that_ends_the_training_leaves_what_sb3_leaves(stop_at: int) -> None:
    fast, slow = make(), make()
    recorder = Recorder(stop_at)
    assert not collect_with(fast, TRPO.collect_rollouts, recorder)
    replay(slow, [np.array(seen["actions"]) for seen in recorder.seen])
    assert not collect_with(slow, OnPolicyAlgorithm.collect_rollouts, Recorder(stop_at))
    assert len(recorder.seen) == stop_at
    assert_same_buffers(fast.rollout_buffer, slow.rollout_buffer, stop_at - 1)
    np.testing.assert_allclose(fast._last_obs, slow._last_obs)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("n_envs", [1, 3, 9])
@pytest.mark.parametrize("sde_sample_freq", [-1, 4])
def test_same_seed_gives_the_actions_that_sb3_draws(name: str, n_envs: int, sde_sample_freq: int) -> None:
    fast, slow = (make(name, n_envs=n_envs, sde_sample_freq=sde_sample_freq, n_steps=60, batch_size=60) for _ in range(2))
    for model, how in ((fast, TRPO.collect_rollouts), (slow, OnPolicyAlgorithm.collect_rollouts)):
        th.manual_seed(1)
        collect_with(model, how)
    # The log-probability of a squashed action takes its atanh, which makes rounding errors near 1 a million times larger.
    assert_same_buffers(fast.rollout_buffer, slow.rollout_buffer, log_prob_atol=0.2 if name == "gsde_squashed" else 1e-5)
    assert fast.rollout_buffer.actions.std() > 0


def test_seeds_reproduce_the_training() -> None:
    parameters = []
    for _ in range(2):
        model = make().learn(240)
        parameters.append({name: value.clone() for name, value in model.policy.state_dict().items()})
    assert all(th.equal(value, parameters[1][name]) for name, value in parameters[0].items())


def test_actor_reads_the_policy_afresh_at_each_rollout() -> None:
    model = make()
    collect(model)
    with th.no_grad():
        model.policy.action_net.bias.fill_(50.0)
        model.policy.log_std.fill_(-3.0)
    collect(model)
    assert abs(model.rollout_buffer.actions - 50.0).max() < 5


class Custom(ActorCriticPolicy):
    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, 0 * values + 7, log_prob


class Counting(RolloutBuffer):
    added = 0

    def add(self, *args: Any, **kwargs: Any) -> None:
        super().add(*args, **kwargs)
        type(self).added += 1


def test_what_is_not_recognised_takes_sb3s_own_loop() -> None:
    model = collect(TRPO(Custom, random_env(), n_steps=32, seed=0))
    assert (model.rollout_buffer.values == 7).all(), "the policy's own forward was asked"
    Counting.added = 0
    collect(TRPO("MlpPolicy", random_env(), n_steps=32, seed=0, rollout_buffer_class=Counting))
    assert Counting.added == 32, "the buffer's own add() was asked"


def test_observations_that_an_environment_reuses_are_copied() -> None:
    class Reusing(Mixed):
        def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            observation, info = super().reset(**kwargs)
            self.shown = observation.copy()
            return self.shown, info

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, *rest = super().step(action)
            self.shown[:] = observation
            return self.shown, *rest  # type: ignore[return-value]

    model = collect(TRPO("MlpPolicy", Reusing(OBSERVATION_SPACES["box"], ACTION_SPACES["box"]), n_steps=64, seed=0))
    assert len(np.unique(model.rollout_buffer.observations[:, 0, 0])) > 60


def test_subprocesses_and_real_environments() -> None:
    env = make_vec_env("Pendulum-v1", 2, seed=0, vec_env_cls=SubprocVecEnv)
    try:
        fast = TRPO("MlpPolicy", env, n_steps=256, seed=0)
        recorder = Recorder()
        collect_with(fast, TRPO.collect_rollouts, recorder)
    finally:
        env.close()
    slow = TRPO("MlpPolicy", make_vec_env("Pendulum-v1", 2, seed=0), n_steps=256, seed=0)
    replay(slow, [np.array(seen["actions"]) for seen in recorder.seen])
    collect_with(slow, OnPolicyAlgorithm.collect_rollouts)
    assert_same_buffers(fast.rollout_buffer, slow.rollout_buffer)
    assert isinstance(gym.make("Pendulum-v1"), gym.wrappers.TimeLimit)
    assert copy.copy(fast.rollout_buffer.rewards).max() <= 0


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_general_path_is_sb3s(name: str) -> None:
    """To the bit, since it does the same."""
    ours, theirs = make(name, sde_sample_freq=4), make(name, sde_sample_freq=4)
    force_general_path(ours)
    for model, how in ((ours, TRPO.collect_rollouts), (theirs, OnPolicyAlgorithm.collect_rollouts)):
        th.manual_seed(1)
        assert collect_with(model, how)
    for field in ("observations", "actions", "rewards", "episode_starts", "values", "log_probs"):
        np.testing.assert_array_equal(getattr(ours.rollout_buffer, field), getattr(theirs.rollout_buffer, field), field)
    assert_same_buffers(ours.rollout_buffer, theirs.rollout_buffer)


@pytest.mark.parametrize("general", [False, True])
def test_gamma_of_the_buffer_is_written_where_it_follows_a_schedule_alone(general: bool) -> None:
    scheduled, fixed = make(gamma=lambda remaining: 0.5), make(gamma=0.5)
    for model in (scheduled, fixed):
        if general:
            force_general_path(model)
        model.rollout_buffer.gamma = 0.25
        collect(model)
    assert scheduled.rollout_buffer.gamma == 0.5
    assert fixed.rollout_buffer.gamma == 0.25, "SB3 leaves it alone"
    # Truncated episodes are bootstrapped by the model's gamma, the advantages are discounted by the buffer's.
    slow = make(gamma=0.5)
    slow.rollout_buffer.gamma = 0.25
    th.manual_seed(1)
    collect_with(slow, OnPolicyAlgorithm.collect_rollouts)
    again = make(gamma=0.5)
    if general:
        force_general_path(again)
    again.rollout_buffer.gamma = 0.25
    th.manual_seed(1)
    collect_with(again, TRPO.collect_rollouts)
    assert_same_buffers(again.rollout_buffer, slow.rollout_buffer)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_policy_that_a_callback_changes_acts_from_the_next_step_on(name: str) -> None:
    def change(model: Any) -> None:
        with th.no_grad():
            model.policy.action_net.bias.add_(1.0)
            model.policy.value_net.bias.fill_(3.0)

    models = [make(name), make(name)]
    for model, how in zip(models, (TRPO.collect_rollouts, OnPolicyAlgorithm.collect_rollouts), strict=True):
        th.manual_seed(1)
        assert collect_with(model, how, AtStep(10, change))
    values = models[1].rollout_buffer.values
    assert abs(values[:10].mean()) < 2 < values[10:].mean()
    squashed = name == "gsde_squashed"
    assert_same_buffers(models[0].rollout_buffer, models[1].rollout_buffer, log_prob_atol=0.2 if squashed else 1e-5)


def test_policy_that_becomes_another_kind_in_a_rollout_takes_sb3s_way_from_there() -> None:
    seen: list[int] = []

    def hook(model: Any) -> None:
        model.policy.action_net.register_forward_hook(lambda module, inputs, output: seen.append(len(output)) or 2 * output)

    models = [make(), make()]
    for model, how in zip(models, (TRPO.collect_rollouts, OnPolicyAlgorithm.collect_rollouts), strict=True):
        th.manual_seed(1)
        assert collect_with(model, how, AtStep(10, hook))
        assert seen == [3] * 30
        seen.clear()
    assert_same_buffers(models[0].rollout_buffer, models[1].rollout_buffer)


class Meddling(Mixed):
    """Its third step changes the policy, where nobody looks for that."""

    model: Any = None

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.steps == 2 and self.model is not None:
            self.model.policy.action_net.bias.data.fill_(9.0)
        return super().step(action)


def test_policy_that_is_changed_behind_ones_back_is_watched_from_then_on() -> None:
    env = Meddling(OBSERVATION_SPACES["box"], ACTION_SPACES["box"])
    model = TRPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0)
    collect(model)
    assert not model._is_policy_watched
    env.model = model
    collect(model)
    assert model._is_policy_watched
    model.policy.action_net.bias.data.zero_()
    collect(model)
    assert abs(model.rollout_buffer.actions[:2].mean()) < 4 < model.rollout_buffer.actions[4:].mean()


class Failing(Mixed):
    n_steps = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        if self.n_steps == 8:
            raise ZeroDivisionError
        return super().step(action)


def test_error_of_an_environment_leaves_the_models_parts_as_sb3_has_them() -> None:
    model = TRPO("MlpPolicy", Failing(OBSERVATION_SPACES["box"], ACTION_SPACES["box"]), n_steps=32, batch_size=32, seed=0)
    kinds = type(model.rollout_buffer), type(model.policy.action_dist)
    with pytest.raises(ZeroDivisionError):
        model.learn(32, Recorder())
    assert (type(model.rollout_buffer), type(model.policy.action_dist)) == kinds
    assert model.rollout_buffer.pos == 7
    with th.no_grad():
        observations = th.as_tensor(model.rollout_buffer.observations[:7, 0])
        th.testing.assert_close(th.as_tensor(model.rollout_buffer.values[:7]), model.policy.predict_values(observations))


@pytest.mark.parametrize("n_steps", [30, 40])
def test_buffer_longer_than_the_rollout_is_filled_as_far(n_steps: int) -> None:
    buffers = []
    for how in (TRPO.collect_rollouts, OnPolicyAlgorithm.collect_rollouts):
        model = make()
        _, callback = model._setup_learn(120)
        th.manual_seed(1)
        assert how(model, model.env, callback, model.rollout_buffer, n_steps)
        buffers.append(model.rollout_buffer)
    assert buffers[0].pos == n_steps
    assert_same_buffers(*buffers)


def test_noise_of_many_environments_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers: how many are drawn at a time is a matter of memory alone."""
    actions = []
    for most in (2**20, 20):
        monkeypatch.setattr(acting, "MOST_NOISE", most)
        model = make()
        th.manual_seed(1)
        collect(model)
        actions.append(model.rollout_buffer.actions.copy())
    np.testing.assert_array_equal(*actions)
