"""Fast collection against SB3's own: the same buffer, the same contract, the right distribution of actions."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
from torch import nn

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.policies.plain import ELEMENTWISE
from sb3_trpo_plus.rollouts.fast_actor import FastActor
from tests.conftest import ACTION_SPACES, DISTRIBUTIONS, RandomEnv, collect, random_env

OBSERVATION_SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-2, 2, (4,)),
    "box in double precision": spaces.Box(-2, 2, (2, 3), dtype=np.float64),
    "image": spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8),
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(4),
}
FIELDS = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")


class Mixed(RandomEnv):
    """Episodes that end, and others that are cut off."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, bool(self.np_random.random() < 0.05), truncated, info


def make(name: str = "box", observation_space: str = "box", n_envs: int = 3, **kwargs: Any) -> TRPO:
    space, options = DISTRIBUTIONS[name]
    env: Any = make_vec_env(lambda: Mixed(OBSERVATION_SPACES[observation_space], ACTION_SPACES[space]), n_envs, seed=0)
    if observation_space == "box":
        env = VecNormalize(env)
    return TRPO("MlpPolicy", env, **{"n_steps": 40, "batch_size": 40, "seed": 0, **options, **kwargs})


class Recorder(BaseCallback):
    """Keeps what a callback can see in each step."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []
        self.stop_at = stop_at

    def _on_step(self) -> bool:
        # SB3 adds to the rewards in place after the callback.
        self.seen.append({key: x.copy() if isinstance(x, np.ndarray) else x for key, x in self.locals.items()})
        return self.n_calls != self.stop_at


def collect_with(model: TRPO, collect_rollouts: Callable[..., bool], callback: BaseCallback | None = None) -> bool:
    _, callback = model._setup_learn(model.n_steps * model.n_envs, callback)
    callback.on_training_start({}, {})
    return collect_rollouts(model, model.env, callback, model.rollout_buffer, model.n_steps)


def replay(model: TRPO, actions: list[Any]) -> None:
    """Let the policy's own forward take these actions."""
    policy, queue = model.policy, iter(actions)

    def forward(observations: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        taken = th.as_tensor(next(queue))
        distribution = policy.get_distribution(observations)
        flat = taken if isinstance(policy.action_space, spaces.Discrete) else taken.reshape(len(taken), -1)
        return taken, policy.predict_values(observations), distribution.log_prob(flat)

    policy.forward = forward


def assert_same_buffers(
    one: RolloutBuffer, other: RolloutBuffer, n_steps: int | None = None, log_prob_atol: float = 1e-5
) -> None:
    assert (one.pos, one.full) == (other.pos, other.full)
    for field in FIELDS:
        ours, theirs = (getattr(buffer, field)[:n_steps] for buffer in (one, other))
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), field
        atol = log_prob_atol if field == "log_probs" else 1e-5
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=atol, err_msg=field)


@pytest.mark.parametrize(
    ("name", "observation_space"),
    [(name, "box") for name in DISTRIBUTIONS] + [("discrete", space) for space in OBSERVATION_SPACES] + [("box", "image")],
)
def test_buffer_is_the_one_that_sb3_fills_with_the_same_actions(name: str, observation_space: str) -> None:
    fast, slow = make(name, observation_space), make(name, observation_space)
    assert FastActor.of(fast.policy) is not None
    recorder = Recorder()
    assert collect_with(fast, TRPO.collect_rollouts, recorder)
    replay(slow, [np.array(seen["actions"]) for seen in recorder.seen])
    assert collect_with(slow, OnPolicyAlgorithm.collect_rollouts)
    truncated = [info.get("TimeLimit.truncated", False) for seen in recorder.seen for info in seen["infos"]]
    done = [done for seen in recorder.seen for done in seen["dones"]]
    assert sum(done) > sum(truncated) > 0, "both kinds of ends occur"
    assert_same_buffers(fast.rollout_buffer, slow.rollout_buffer)
    assert fast.num_timesteps == slow.num_timesteps == 120
    np.testing.assert_allclose(fast._last_obs, slow._last_obs, rtol=1e-6)
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


@pytest.mark.parametrize("activation", ELEMENTWISE)
@pytest.mark.parametrize("width", [16, 520])
def test_actor_is_the_policys_network(activation: type[nn.Module], width: int) -> None:
    """The outputs, by every activation, in layers large enough for torch and small enough for NumPy."""
    model = make(policy_kwargs={"net_arch": [width, width], "activation_fn": activation})
    actor = FastActor.of(model.policy)
    assert actor is not None
    actor.begin(2, 3)
    observations = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    with th.no_grad():
        mean = model.policy.get_distribution(th.as_tensor(observations)).distribution.mean.numpy()
    for step in range(2):
        np.testing.assert_allclose(actor.act(observations, step) - actor.noise[step], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_actions_have_the_policys_distribution(name: str) -> None:
    """In one state, 40,000 times: means and (co)variances within five standard errors of the distribution's own."""
    model = make(name)
    with th.no_grad():
        model.policy.action_net.bias.copy_(th.linspace(-1, 1.5, len(model.policy.action_net.bias)))
        if name == "box":
            model.policy.log_std.copy_(th.tensor([-1.0, 0.0, 0.5]))
    actor = FastActor.of(model.policy)
    assert actor is not None
    n = 40_000
    th.manual_seed(0)
    actor.begin(n // 40, 40)
    observation = np.full((40, 4), 0.3, dtype=np.float32)
    actions = np.concatenate([actor.act(observation, step) for step in range(n // 40)])
    assert model.action_space.contains(actions[0].astype(model.action_space.dtype)) or name == "box"
    with th.no_grad():
        distribution = model.policy.get_distribution(th.as_tensor(observation[:1])).distribution
    if name == "box":
        mean, std = distribution.mean.numpy()[0], distribution.stddev.numpy()[0]
        assert (abs(actions.mean(0) - mean) < 5 * std / n**0.5).all()
        assert (abs(actions.std(0) / std - 1) < 5 / (2 * n) ** 0.5).all()
        assert (abs(np.corrcoef(actions.T) - np.eye(3)) < 5 / n**0.5).all()
    elif name == "multi_binary":
        probability = distribution.probs.numpy()[0]
        assert (abs(actions.mean(0) - probability) < 5 * (probability * (1 - probability) / n) ** 0.5).all()
        assert (abs(np.corrcoef(actions.T) - np.eye(3)) < 5 / n**0.5).all()
    else:
        columns = actions.reshape(n, -1).T
        for column, part in zip(columns, [distribution] if name == "discrete" else distribution, strict=True):
            probability = part.probs.numpy()[0]
            frequency = np.bincount(column, minlength=len(probability)) / n
            assert (abs(frequency - probability) < 5 * (probability * (1 - probability) / n) ** 0.5).all()


def test_improbable_actions_are_not_drawn() -> None:
    """A logit of -1000 has probability 0 in float32: no noise may be so large that it wins."""
    model = make("discrete")
    with th.no_grad():
        model.policy.action_net.bias[0] = -1000.0
    actor = FastActor.of(model.policy)
    assert actor is not None
    actor.begin(2000, 100)
    assert np.isfinite(actor.noise).all()
    observations = np.zeros((100, 4), dtype=np.float32)
    assert min(actor.act(observations, step).min() for step in range(2000)) == 1


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
