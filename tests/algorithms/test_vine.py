"""The vine procedure: its values against exact ones, its estimators against their definitions, and no trace in the trunk."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecNormalize
from torch import distributions as td

from sb3_trpo_plus import VineTRPO
from sb3_trpo_plus.algorithms.base import KLControlled
from sb3_trpo_plus.algorithms.vine import VineSample
from sb3_trpo_plus.policies.actor import actor_gradient
from sb3_trpo_plus.policies.distributions import action_distribution
from sb3_trpo_plus.states import Restorable, get_vec_state
from sb3_trpo_plus.tabular import FiniteMDP
from sb3_trpo_plus.tabular import evaluate as evaluate_exactly
from tests.algorithms.members import SMALL
from tests.conftest import DISTRIBUTIONS, RandomEnv, collect, random_env


class Pull(gym.Env[Any, Any]):
    """A point that actions push; episodes of 16 steps, all of them terminated."""

    observation_space = spaces.Box(-9.0, 9.0, (2,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.time = float(self.np_random.uniform(-1, 1)), 0
        return self.observation(), {}

    def observation(self) -> Any:
        return np.array([self.place, self.time / 16], dtype=np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place, self.time = 0.9 * self.place + 0.3 * float(action[0]), self.time + 1
        return self.observation(), -(self.place**2), self.time == 16, False, {}


def test_one_action_and_whole_rollouts_are_the_single_path_with_monte_carlo_returns() -> None:
    """A policy of so little noise that a rollout tried again is the same to 1e-3, and a critic that says nothing."""
    model = VineTRPO(
        "MlpPolicy", make_vec_env(Pull, 4, seed=0), n_steps=32, batch_size=128, n_rollout_states=128, n_actions=1,
        gae_lambda=1.0, policy_kwargs={"log_std_init": -8.0}, seed=0,
    )  # fmt: skip
    with th.no_grad():
        for parameter in model.policy.value_net.parameters():
            parameter.zero_()
    collect(model)
    gradients, samples = [], [KLControlled._sample(model), model._sample()]
    for sample in samples:
        distribution = action_distribution(model.policy, sample.observations)
        gradients.append(actor_gradient(model.policy, model._surrogate(distribution, sample))[1])
    single_path, vine = (np.column_stack([one.observations, one.raw_advantages.flatten()]) for one in samples)
    assert len(vine) == 128
    np.testing.assert_allclose(vine[np.lexsort(vine.T[:2])], single_path[np.lexsort(single_path.T[:2])], atol=5e-3)
    th.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=2e-2 * gradients[0].abs().max().item())
    assert th.cosine_similarity(*gradients, dim=0) > 0.9995


def test_q_values_of_frozen_lake_are_the_exact_ones_on_average() -> None:
    env = make_vec_env("FrozenLake-v1", 8, seed=0)
    model = VineTRPO("MlpPolicy", env, n_steps=400, n_rollout_states=3200, gamma=0.9, normalize_advantage=False, seed=0)
    with th.no_grad():
        probabilities = model.policy.get_distribution(th.arange(16)).distribution.probs
    # The environment's time limit of 100 steps does not count: gamma^100 is 3e-5.
    mdp = FiniteMDP.from_gymnasium("FrozenLake-v1", 0.9)
    policy = np.vstack([probabilities.double().numpy(), np.full((1, 4), 0.25)])
    advantages = evaluate_exactly(mdp, policy / policy.sum(axis=1, keepdims=True)).advantages
    collect(model)
    sample = model._sample()
    states, estimates = sample.observations.flatten().numpy(), sample.raw_advantages.numpy()
    compared = 0
    for state in np.unique(states):
        found = estimates[states == state]
        if len(found) < 50:
            continue
        error = found.std(axis=0) / len(found) ** 0.5
        assert (np.abs(found.mean(axis=0) - advantages[int(state)]) <= 4.5 * error + 2e-4).all()
        compared += (error > 0).sum()
    assert compared >= 20


class Fixed:
    """What expected_advantage asks of a distribution."""

    def __init__(self, distribution: Any) -> None:
        self.log_prob = distribution.log_prob


def vine_sample(actions: th.Tensor, advantages: th.Tensor, log_proposal: th.Tensor | None) -> VineSample:
    nothing = th.zeros(len(actions))
    return VineSample(nothing, nothing, nothing, advantages, advantages, actions, log_proposal)


def test_all_actions_are_summed_with_their_probabilities() -> None:
    logits, values = th.randn(7, 3), th.randn(7, 3)
    sample = vine_sample(th.arange(3).expand(7, -1), values, None)
    expected = (th.softmax(logits, 1) * values).sum(1).mean()
    th.testing.assert_close(sample.expected_advantage(Fixed(td.Categorical(logits=logits)), values), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("proposal", ["policy", "uniform"])
def test_self_normalised_estimate_tends_to_the_expectation(proposal: str) -> None:
    """Of A(a) = a^2 under N(0.3, 0.4) with actions of N(0, 0.5), or uniform on (-3, 3): 0.3^2 + 0.4^2."""
    th.manual_seed(0)
    n_actions = 200_000
    source = td.Normal(0.0, 0.5) if proposal == "policy" else td.Uniform(-3.0, 3.0)
    actions = source.sample((2, n_actions))
    log_q = source.log_prob(actions) if proposal == "policy" else th.zeros(2, n_actions)
    sample = vine_sample(actions, actions**2, log_q)
    # One distribution for each state; log_prob is asked for all states, an action at a time.
    weights = th.exp(td.Normal(0.3, 0.4).log_prob(actions) - log_q)
    by_definition = ((weights * actions**2).sum(1) / weights.sum(1)).mean()
    few = vine_sample(actions[:, :50], actions[:, :50] ** 2, log_q[:, :50])
    estimate = few.expected_advantage(Fixed(td.Normal(0.3, 0.4)), few.advantages)  # type: ignore[arg-type]
    expected = ((weights * actions**2)[:, :50].sum(1) / weights[:, :50].sum(1)).mean()
    th.testing.assert_close(estimate, expected)
    assert by_definition.item() == pytest.approx(0.3**2 + 0.4**2, rel=0.02)
    shifted = few.expected_advantage(Fixed(td.Normal(0.3, 0.4)), few.advantages + 5.0)  # type: ignore[arg-type]
    assert shifted.item() == pytest.approx(estimate.item() + 5.0, rel=1e-5)
    assert len(sample.branches) == 2


@pytest.mark.parametrize(
    ("env", "n_actions", "proposal", "n_tried"),
    [
        ("CartPole-v1", None, "policy", 2),
        ("CartPole-v1", 3, "policy", 2),
        ("Pendulum-v1", None, "policy", 4),
        ("Pendulum-v1", 3, "uniform", 3),
        ("CartPole-v1", 1, "policy", 1),
    ],
)
def test_surrogate_is_zero_at_the_policy_that_branched(env: str, n_actions: int | None, proposal: str, n_tried: int) -> None:
    """Advantages are measured from the state's own value, by the same estimator; for one action from nothing."""
    model = collect(VineTRPO("MlpPolicy", env, **SMALL, n_actions=n_actions, proposal=proposal, rollout_length=30))
    sample = model._sample()
    distribution = action_distribution(model.policy, sample.observations)
    value = sample.expected_advantage(distribution, sample.raw_advantages).item()
    if n_actions == 1:
        assert value == pytest.approx(sample.raw_advantages.mean().item(), rel=1e-4)
    else:
        assert value == pytest.approx(0.0, abs=1e-4)
    assert sample.branches.shape[:2] == (8, n_tried)
    assert sample.raw_advantages.abs().max() > 0.1


def test_actions_are_the_trunks_and_others_of_the_policy_or_uniform() -> None:
    settings: Any = {**SMALL, "n_steps": 512, "n_rollout_states": 512, "n_actions": 3, "rollout_length": 1}
    kwargs = {"policy_kwargs": {"log_std_init": -2.0}}
    of_policy = collect(VineTRPO("MlpPolicy", "Pendulum-v1", **settings, **kwargs))._sample()
    assert th.equal(of_policy.branches[:, 0], of_policy.actions)
    assert of_policy.branches.std().item() == pytest.approx(np.exp(-2.0), rel=0.2)
    assert not th.equal(of_policy.branches[:, 0], of_policy.branches[:, 1])
    uniform = collect(VineTRPO("MlpPolicy", "Pendulum-v1", **settings, **kwargs, proposal="uniform"))._sample()
    assert uniform.branches.min() < -1.9
    assert uniform.branches.max() > 1.9
    assert uniform.branches.std().item() == pytest.approx(4 / 12**0.5, rel=0.1)


@pytest.mark.parametrize("bootstrap", [True, False])
def test_value_of_the_critic_stands_for_what_was_cut_off(bootstrap: bool) -> None:
    """Branches of two steps in CartPole, whose rewards are 1, with a critic that says 7 everywhere."""
    model = VineTRPO("MlpPolicy", "CartPole-v1", **SMALL, rollout_length=2, bootstrap=bootstrap, gamma=0.9)
    with th.no_grad():
        for parameter in model.policy.value_net.parameters():
            parameter.zero_()
        model.policy.value_net.bias.fill_(7.0)
    collect(model)
    states = [get_vec_state(model.env, 0)]
    callback = model._setup_learn(1)[1]
    q = model._q_values(model.env, callback, states, th.tensor([[0, 1]]))
    expected = 1 + 0.9 + (0.81 * 7 if bootstrap else 0)
    assert q is not None
    assert q.flatten().tolist() == pytest.approx([expected, expected])


def test_steps_of_branches_count_and_the_trunk_goes_on_where_it_was() -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", 4, seed=0))
    model = VineTRPO("MlpPolicy", env, **SMALL, n_actions=2, rollout_length=5)
    model.learn(1)
    # 16 steps of 4 environments, and 8 states x 2 actions x 5 steps, which are 4 rounds of the 4 environments.
    assert model.num_timesteps == 64 + 80
    assert env.obs_rms.count == pytest.approx(4 + 64, abs=1)
    inner = [one.unwrapped for one in env.venv.envs]
    seen = env.normalize_obs(np.stack([one._get_obs() for one in inner]))
    np.testing.assert_allclose(seen, model._last_obs, atol=1e-5)
    monitors = env.venv.envs
    assert [len(monitor.rewards) for monitor in monitors] == [16] * 4
    assert [one.env._elapsed_steps for one in monitors] == [16] * 4
    assert not any(monitor.episode_returns for monitor in monitors)


class Watch(BaseCallback):
    def __init__(self, stop_after: int) -> None:
        super().__init__()
        self.stop_after, self.branch_steps, self.seen_dones = stop_after, 0, 0

    def _on_step(self) -> bool:
        if self.locals.get("branching", False):
            self.branch_steps += 1
            self.seen_dones += int(np.sum(self.locals["dones"]))
            assert self.locals["rewards"].shape == (2,)
        return self.branch_steps < self.stop_after


def test_callback_sees_branches_and_can_end_the_training_in_one() -> None:
    env = make_vec_env("CartPole-v1", 2, seed=0)
    watch = Watch(10)
    model = VineTRPO("MlpPolicy", env, **SMALL).learn(10_000, watch)
    assert watch.branch_steps == 10
    assert model.num_timesteps == 2 * (16 + 10)
    state = np.stack([one.unwrapped.state for one in env.envs])
    np.testing.assert_allclose(state, model._last_obs, atol=1e-6)


def test_ends_of_branches_are_not_episodes_of_the_training() -> None:
    watch = Watch(10_000)
    model = VineTRPO("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), **SMALL)
    model.learn(1, [watch, StopTrainingOnMaxEpisodes(5)])
    assert watch.branch_steps > 50
    assert watch.seen_dones == 0
    assert len(model.ep_info_buffer) < 5


def test_second_rollout_forgets_branching() -> None:
    """Locals of branches must not stay for the next trunk's callbacks."""
    seen = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(bool(self.locals.get("branching", False)))
            return True

    VineTRPO("MlpPolicy", "CartPole-v1", **SMALL, rollout_length=1).learn(60, Look())
    # 16 steps of the trunk, 8 x 2 branches of one step, and the same once more.
    assert seen == ([False] * 16 + [True] * 16) * 2


@pytest.mark.parametrize("name", [name for name, (space, _) in DISTRIBUTIONS.items() if space != "discrete"])
def test_drawn_actions_differ_and_have_the_policys_probabilities(name: str) -> None:
    space, options = DISTRIBUTIONS[name]
    settings: Any = {**SMALL, "n_steps": 64, "n_rollout_states": 64, "n_actions": 3, "rollout_length": 1}
    sample = collect(VineTRPO("MlpPolicy", random_env(space), **settings, **options))._sample()
    assert (sample.branches[:, 1] != sample.branches[:, 2]).any()
    assert sample.raw_advantages.abs().max() > 0


@pytest.mark.parametrize("space", ["discrete", "multi_discrete"])
def test_branches_begin_with_actions_of_the_spaces_own_type(space: str) -> None:
    class Table(RandomEnv):
        def step(self, action: Any) -> Any:
            return *super().step(action)[:1], [0.0, 1.0, 2.0, 3.0][np.ravel(action)[0]], False, False, {}

    env = Table(spaces.Box(-2.0, 2.0, (4,)), random_env(space).action_space)
    model = VineTRPO("MlpPolicy", env, **SMALL, rollout_length=3, n_actions=3).learn(10)
    assert model.num_timesteps == 16 + 8 * 3 * 3


def test_uniform_actions_have_the_weight_that_their_density_gives_them() -> None:
    settings: Any = {**SMALL, "n_actions": 1, "proposal": "uniform", "rollout_length": 1}
    for env, density in (("CartPole-v1", 1 / 2), ("Pendulum-v1", 1 / 4)):
        sample = collect(VineTRPO("MlpPolicy", env, **settings))._sample()
        assert sample.log_proposal.exp().flatten().tolist() == pytest.approx([density] * 8)


def test_callback_that_saves_in_a_branch_saves_statistics_that_go_on() -> None:
    seen = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            seen.append((bool(self.locals["branching"]), self.training_env.training))
            return True

    env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
    VineTRPO("MlpPolicy", env, **SMALL, rollout_length=2).learn(1, Look())
    assert {branching for branching, _ in seen} == {True, False}
    assert all(training for _, training in seen)


def test_environments_that_differ_are_not_branched_in() -> None:
    """A state of one frozen lake would be continued on another."""
    env = make_vec_env("FrozenLake-v1", 2, seed=0, env_kwargs={"map_name": None, "is_slippery": False})
    with pytest.raises(ValueError, match="in another environment of the VecEnv"):
        VineTRPO("MlpPolicy", env, **SMALL).learn(10)


def test_learning_rate_of_a_schedule_never_falls_below_its_end() -> None:
    rates = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            rates.append(self.model.policy.optimizer.param_groups[0]["lr"])
            return True

    settings: Any = {**SMALL, "bootstrap": True, "rollout_length": 50}
    model = VineTRPO("MlpPolicy", "CartPole-v1", learning_rate=lambda left: 1e-3 * left, **settings)
    model.learn(300, Look())
    assert model.num_timesteps > 300
    assert 0 <= min(rates) <= max(rates) == 1e-3
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.0


def test_processes_and_stacked_frames() -> None:
    venv = make_vec_env("CartPole-v1", 2, seed=0, vec_env_cls=SubprocVecEnv, wrapper_class=Restorable)
    env = VecFrameStack(VecNormalize(venv), 3)
    model = VineTRPO("MlpPolicy", env, **SMALL, bootstrap=True, rollout_length=10)
    model.learn(100)
    assert model.last_step is not None
    assert model.last_step.accepted
    env.close()


def test_environment_whose_state_cannot_be_saved_is_named() -> None:
    with pytest.raises(TypeError, match="LunarLander-v3"):
        VineTRPO("MlpPolicy", "LunarLander-v3", **SMALL).learn(10)


def test_vine_has_no_sub_sampling() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'sub_sampling_factor'"):
        VineTRPO("MlpPolicy", "CartPole-v1", sub_sampling_factor=2)  # type: ignore[call-arg]


def test_branch_returns_that_are_not_finite_change_nothing() -> None:
    model = collect(VineTRPO("MlpPolicy", "CartPole-v1", **SMALL))
    model._vine.raw_advantages[0, 0] = np.inf
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.warns(UserWarning, match="the rollout's returns of branches are not all finite"):
        model.train()
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


def test_same_seed_gives_the_same_training() -> None:
    runs = []
    for _ in range(2):
        model = VineTRPO("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=3), **{**SMALL, "seed": 3}).learn(2000)
        runs.append({name: value.clone() for name, value in model.policy.state_dict().items()})
    assert all(th.equal(value, runs[1][name]) for name, value in runs[0].items())
