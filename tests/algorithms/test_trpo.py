"""The algorithm as a user meets it: spaces, policies, the trust region's promises, its errors and its logs."""

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import DEBUG, configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from torch import nn

import sb3_trpo_plus.algorithms.trpo
from sb3_trpo_plus import TRPO
from sb3_trpo_plus.trust_region.step import StepSettings
from tests.algorithms.members import actor_of
from tests.conftest import ACTION_SPACES, DISTRIBUTIONS, collect, parameters_of, random_env, read_log

OBSERVATION_SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1, 1, (2, 3)),
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(4),
}


def make(name: str = "box", **kwargs: Any) -> TRPO:
    space, options = DISTRIBUTIONS[name]
    return TRPO("MlpPolicy", random_env(space), **{"n_steps": 64, "batch_size": 64, "seed": 0, **options, **kwargs})


def changed(before: dict[str, th.Tensor], model: TRPO) -> set[str]:
    return {name for name, value in parameters_of(model).items() if not th.equal(value, before[name])}


@pytest.mark.parametrize("action_space", ACTION_SPACES)
@pytest.mark.parametrize("observation_space", OBSERVATION_SPACES)
def test_learns_in_every_pair_of_spaces(observation_space: str, action_space: str) -> None:
    env = random_env(action_space, OBSERVATION_SPACES[observation_space])
    model = TRPO("MlpPolicy", env, n_steps=64, batch_size=64, n_critic_updates=1, seed=0)
    before = parameters_of(model)
    model.learn(64)
    assert changed(before, model) == set(before)
    assert env.action_space.contains(model.predict(env.observation_space.sample())[0])


@pytest.mark.parametrize("share_features_extractor", [True, False])
@pytest.mark.parametrize("discrete", [True, False])
def test_cnn_policy(share_features_extractor: bool, discrete: bool) -> None:
    env = FakeImageEnv(screen_height=36, screen_width=36, discrete=discrete)
    policy_kwargs = {
        "share_features_extractor": share_features_extractor, "features_extractor_kwargs": {"features_dim": 8},
    }  # fmt: skip
    model = TRPO("CnnPolicy", env, n_steps=32, batch_size=32, n_critic_updates=1, policy_kwargs=policy_kwargs, seed=0)
    before = parameters_of(model)
    model.learn(32)
    assert changed(before, model) == set(before)


def test_multi_input_policy() -> None:
    env = SimpleMultiObsEnv(random_start=True)
    model = TRPO("MultiInputPolicy", env, n_steps=64, batch_size=64, fisher_sub_sampling_factor=3, seed=0)
    before = parameters_of(model)
    model.learn(64)
    assert changed(before, model) == set(before)


class SharedExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box, batch_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__(observation_space, 6)
        norm = nn.BatchNorm1d(6) if batch_norm else nn.Identity()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), norm, nn.Tanh(), nn.Dropout(dropout))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)


def test_critics_fit_does_not_move_what_it_shares_with_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(policy_kwargs={"features_extractor_class": SharedExtractor}, learning_rate=0.1)
    collect(model)
    moved: dict[str, set[str]] = {}
    fit = TRPO._fit_critic

    def watched(self: TRPO, actor: list[nn.Parameter]) -> None:
        moved["policy step"] = changed(before, self)
        between = parameters_of(self)
        fit(self, actor)
        moved["critic"] = changed(between, self)

    monkeypatch.setattr(TRPO, "_fit_critic", watched)
    before = parameters_of(model)
    model.train()
    assert {"features_extractor.net.1.weight", "log_std", "action_net.weight"} <= moved["policy step"]
    assert not any("value" in name for name in moved["policy step"])
    assert moved["critic"] == {name for name in before if "value" in name}


BATCH_NORM = {"features_extractor_class": SharedExtractor, "features_extractor_kwargs": {"batch_norm": True, "dropout": 0.5}}


def test_dropout_is_off_in_the_trust_region(spy: Callable[..., list[Any]]) -> None:
    """Then all ratios are 1 before the step, and the surrogate is the mean of the normalised advantages, which is 0."""
    model = collect(make(policy_kwargs=BATCH_NORM))
    calls = spy(sb3_trpo_plus.algorithms.trpo, "trust_region_step")
    model.train()
    assert abs(calls[0][1].surrogate_old) < 1e-5
    assert calls[0][1].accepted


@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_batch_norm_of_the_actor_follows_the_data_but_not_the_critics_fit(share_features_extractor: bool) -> None:
    model = collect(make(policy_kwargs={**BATCH_NORM, "share_features_extractor": share_features_extractor}))
    observations = model.rollout_buffer.to_torch(model.rollout_buffer.observations.reshape(-1, 4))
    norm = model.policy.pi_features_extractor.net[2]
    model.train()
    # One pass with momentum 0.1, from a mean of 0, of the layer before it; the fit's many passes would have gone further.
    inputs = model.policy.pi_features_extractor.net[1](observations).mean(dim=0)
    th.testing.assert_close(norm.running_mean, 0.1 * inputs, rtol=1e-3, atol=1e-5)
    critics = model.policy.vf_features_extractor.net[2]
    assert th.equal(critics.running_mean, norm.running_mean) == share_features_extractor


def policy_log_prob(model: TRPO, observations: Any, actions: th.Tensor) -> th.Tensor:
    if isinstance(model.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    return model.policy.get_distribution(observations).log_prob(actions)


def refill(model: TRPO, generator: np.random.Generator) -> None:
    """Make the model's rollout one of its present policy: that policy's log-probabilities, and new advantages."""
    buffer = model.rollout_buffer
    next(buffer.get())
    with th.no_grad():
        log_prob = policy_log_prob(model, buffer.to_torch(buffer.observations), buffer.to_torch(np.float32(buffer.actions)))
    buffer.log_probs = log_prob.numpy()[:, None]
    buffer.advantages = generator.normal(size=buffer.advantages.shape).astype(np.float32)


def test_a_thousand_updates_keep_their_promises() -> None:
    """Mean KL(old || new) <= target_kl and no lower surrogate, by SB3's own KL, over random policies and every space."""
    updates = accepted = 0
    generator = np.random.default_rng(0)
    for name in DISTRIBUTIONS:
        policy_kwargs = {"net_arch": [8], **DISTRIBUTIONS[name][1].get("policy_kwargs", {})}
        model = collect(make(name, n_steps=32, batch_size=32, n_critic_updates=0, policy_kwargs=policy_kwargs))

        def surrogate(model: TRPO, rollout: Any) -> float:
            advantages = (rollout.advantages - rollout.advantages.mean()) / (rollout.advantages.std() + 1e-8)
            log_prob = policy_log_prob(model, rollout.observations, rollout.actions)
            return (th.exp(log_prob - rollout.old_log_prob) * advantages).mean().item()

        for _ in range(143):
            with th.no_grad():
                for parameter in model.policy.parameters():
                    parameter.copy_(th.randn_like(parameter) * generator.choice([0.1, 0.5, 1.0]))
            refill(model, generator)
            model.target_kl = float(10 ** generator.uniform(-4, -1))
            rollout = next(model.rollout_buffer.get())
            before, surrogate_old = parameters_of(model), surrogate(model, rollout)
            with th.no_grad():
                old = copy.copy(model.policy.get_distribution(rollout.observations))
            model.train()
            with th.no_grad():
                new = copy.copy(model.policy.get_distribution(rollout.observations))
            updates += 1
            assert sb3.kl_divergence(old, new).mean() <= model.target_kl * (1 + 1e-4), (name, updates)
            if changed(before, model):
                accepted += 1
                # The batch is summed in another order here, so equality to float32's rounding is what can be asked.
                assert surrogate(model, rollout) > surrogate_old - 1e-6, (name, updates)
    assert updates >= 1000
    assert accepted > 0.9 * updates, "the steps were taken, not merely refused"


@pytest.mark.parametrize("option", [{"sub_sampling_factor": 4}, {"fisher_sub_sampling_factor": 4}])
def test_sub_sampling_uses_what_it_says(option: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = collect(make(n_critic_updates=0, **option))
    sizes: list[int] = []
    original = model.policy.get_distribution
    monkeypatch.setattr(model.policy, "get_distribution", lambda obs: sizes.append(len(obs)) or original(obs))
    model.train()
    surrogate, fisher, *line_search = sizes
    whole = "fisher_sub_sampling_factor" in option
    assert (surrogate, fisher) == ((64, 16) if whole else (16, 16))
    assert set(line_search) == {64 if whole else 16}


@pytest.mark.parametrize("name", ["discrete", "box", "gsde_squashed"])
def test_entropy_bonus_raises_the_entropy(name: str) -> None:
    """With advantages that are all equal the bonus alone is left. Squashed actions have theirs sampled."""
    model = make(name, ent_coef=1.0, n_critic_updates=0, n_steps=1024, batch_size=1024, sde_sample_freq=1)
    collect(model)
    with th.no_grad():
        model.policy.action_net.bias.copy_(th.linspace(-1, 1, len(model.policy.action_net.bias)))
        if name == "gsde_squashed":
            model.policy.log_std.fill_(-1.5)
    collect(model)
    observations = model.rollout_buffer.to_torch(model.rollout_buffer.observations.reshape(-1, 4))

    def true_entropy() -> float:
        with th.no_grad():
            distribution = model.policy.get_distribution(observations)
            exact = distribution.entropy()
            if exact is not None:
                return exact.mean().item()
            th.manual_seed(0)
            actions = [th.tanh(distribution.distribution.sample()) for _ in range(200)]
            return -th.stack([distribution.log_prob(action) for action in actions]).mean().item()

    before = true_entropy()
    model.rollout_buffer.advantages[:] = 0.3
    model.train()
    assert true_entropy() > before + 1e-2


def test_arguments_reach_the_step(spy: Callable[..., list[Any]]) -> None:
    arguments = {
        "cg_damping": 0.07, "cg_max_steps": 3, "cg_residual_tol": 0.2, "line_search_shrinking_factor": 0.6,
        "line_search_max_iter": 4, "target_kl": 0.03,
    }  # fmt: skip
    calls = spy(sb3_trpo_plus.algorithms.trpo, "trust_region_step")
    collect(make(**arguments)).train()
    settings = StepSettings(
        damping=0.07, cg_max_steps=3, cg_residual_tol=0.2, shrinking_factor=0.6, max_tries=4, max_kl=0.03
    )  # fmt: skip
    assert calls[0][0] == {"settings": settings, "largest_curvature": None}


@pytest.mark.parametrize("normalize_advantage", [True, False])
@pytest.mark.parametrize(("value", "rounding"), [(0.0, 0.0), (0.1, 0.0), (1e6, 0.0), (0.1, 1e-8)])
def test_equal_advantages_skip_the_policy_update_with_one_warning(
    value: float, rounding: float, normalize_advantage: bool
) -> None:
    model = collect(make(normalize_advantage=normalize_advantage))
    model.rollout_buffer.advantages[:] = value
    model.rollout_buffer.advantages[::2] += rounding
    assert (np.ptp(model.rollout_buffer.advantages) > 0) == (rounding > 0)
    before = parameters_of(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.train()
    assert [str(w.message) for w in caught if "skipped" in str(w.message)] == [
        "This policy update was skipped, the policy stays as it was: all advantages of the rollout are equal"
    ]
    assert changed(before, model) == {name for name in before if "value" in name}


@pytest.mark.parametrize("part", ["advantages", "log_probs"])
def test_rollout_that_is_not_finite_changes_nothing(part: str) -> None:
    model = collect(make())
    getattr(model.rollout_buffer, part)[5] = math.nan
    before, optimiser = parameters_of(model), copy.deepcopy(model.policy.optimizer.state_dict())
    with pytest.warns(UserWarning, match="nothing was changed: the rollout's (advantages|log-probabilities)"):
        model.train()
    assert not changed(before, model)
    assert model.policy.optimizer.state_dict() == optimiser


class RewardsNotFinite(gym.RewardWrapper):
    def reward(self, reward: Any) -> float:
        return math.inf


def test_environment_with_infinite_rewards_does_not_reach_the_parameters() -> None:
    model = TRPO("MlpPolicy", RewardsNotFinite(random_env()), n_steps=32, batch_size=32, seed=0)
    before = parameters_of(model)
    with pytest.warns(UserWarning, match="the rollout's rewards are not all finite"):
        model.learn(64)
    assert not changed(before, model)


def test_surrogate_that_overflows_skips_the_policy_update() -> None:
    model = collect(make())
    model.rollout_buffer.log_probs[:] = -1e4
    before = parameters_of(model)
    with pytest.warns(UserWarning, match="policy stays as it was: the surrogate objective is not finite"):
        model.train()
    assert changed(before, model) == {name for name in before if "value" in name}


def test_steps_so_long_that_the_policy_overflows_are_refused() -> None:
    model = collect(make())
    model.target_kl, model.line_search_max_iter = 1e30, 3
    before = parameters_of(model)
    model.train()
    assert model.last_step is not None
    assert "not finite 3x" in model.last_step.reason
    assert changed(before, model) == {name for name in before if "value" in name}


def test_critic_stops_before_a_loss_that_is_not_finite() -> None:
    model = collect(make())
    model.rollout_buffer.returns[:] = 1e30
    before = parameters_of(model)
    with pytest.warns(UserWarning, match="critic's fit stopped early"):
        model.train()
    assert not any("value" in name for name in changed(before, model))
    assert not any(parameter.grad is not None for parameter in model.policy.parameters())


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("target_kl", 0.0), ("target_kl", -1.0), ("target_kl", math.nan), ("target_kl", math.inf), ("cg_damping", -0.1),
        ("line_search_shrinking_factor", 0.0), ("line_search_shrinking_factor", 1.0), ("cg_max_steps", 0),
        ("line_search_max_iter", 0), ("cg_residual_tol", -1e-3), ("ent_coef", -0.1), ("ent_coef", math.inf),
        ("sub_sampling_factor", 0), ("fisher_sub_sampling_factor", 0), ("n_critic_updates", -1), ("n_steps", 0),
        ("batch_size", 0), ("target_kl", None), ("cg_max_steps", "5"), ("sub_sampling_factor", 1.5), ("n_critic_updates", 2.5),
    ],
)  # fmt: skip
def test_argument_out_of_range_is_named_with_its_value(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be .*, but it is {value!r}"):
        TRPO("MlpPolicy", "CartPole-v1", **{argument: value})  # type: ignore[arg-type]


def test_rollout_too_short_to_normalise_its_advantages() -> None:
    with pytest.raises(AssertionError, match="n_steps=1"):
        TRPO("MlpPolicy", "CartPole-v1", n_steps=1, batch_size=1)
    with pytest.raises(AssertionError, match="sub_sampling_factor=8"):
        TRPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, sub_sampling_factor=8)
    TRPO("MlpPolicy", "CartPole-v1", n_steps=1, batch_size=1, normalize_advantage=False).learn(1)


def test_unsupported_action_space() -> None:
    env = random_env()
    env.action_space = spaces.Dict({"a": spaces.Discrete(2)})
    with pytest.raises(AssertionError, match="Dict"):
        TRPO("MlpPolicy", env)


LOGGED = {
    "policy_objective", "kl_divergence_loss", "is_line_search_success", "value_loss", "explained_variance", "std", "n_updates",
    "learning_rate", "expected_improvement", "improvement_ratio", "kl_mean", "kl_max", "cg_iterations", "cg_residual",
    "step_size", "line_search_steps", "entropy", "gradient_norm", "target_kl", "ent_coef", "gamma",
    "kl_used", "damping_share",
}  # fmt: skip


def test_logs_have_the_documented_tags_and_true_numbers(tmp_path: Path, spy: Callable[..., list[Any]]) -> None:
    model = make(target_kl=0.03)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    calls = spy(sb3_trpo_plus.algorithms.trpo, "trust_region_step")
    model.learn(128)
    std = model.policy.log_std.exp().mean().item()
    model.logger.dump()
    logged, report = read_log(tmp_path), calls[1][1]
    assert logged.keys() == LOGGED
    page = (Path(__file__).parents[2] / "docs" / "logs.md").read_text()
    assert [tag for tag in LOGGED if f"`train/{tag}`" not in page] == []
    expected = {
        "policy_objective": report.surrogate_new,
        "kl_divergence_loss": report.mean_kl,
        "kl_mean": report.mean_kl,
        "kl_max": report.max_kl,
        "is_line_search_success": 1.0,
        "line_search_steps": report.line_search_steps,
        "step_size": report.step_size,
        "expected_improvement": report.expected_improvement,
        "improvement_ratio": (report.surrogate_new - report.surrogate_old) / report.expected_improvement,
        "cg_iterations": report.cg_iterations,
        "cg_residual": report.cg_relative_residual,
        "gradient_norm": report.gradient_norm,
        "kl_used": report.mean_kl / 0.03,
        "damping_share": report.damping_share,
        "std": std,
        "n_updates": 2,
    }
    assert {tag: float(logged[tag]) for tag in expected} == pytest.approx(expected)
    assert 0 < report.mean_kl < report.max_kl
    assert report is model.last_step
    assert report.reason == "accepted after 0 backtracks"
    assert float(logged["entropy"]) == pytest.approx(3 * (0.5 + 0.5 * math.log(2 * math.pi)), abs=0.2)


def test_kl_max_is_the_maximum_over_states() -> None:
    model = collect(make(n_critic_updates=0))
    observations = model.rollout_buffer.to_torch(model.rollout_buffer.observations.reshape(-1, 4))
    old = copy.copy(model.policy.get_distribution(observations))
    model.train()
    with th.no_grad():
        kl = sb3.kl_divergence(old, model.policy.get_distribution(observations)).mean(dim=1)
    assert model.logger.name_to_value["train/kl_max"] == pytest.approx(kl.max().item(), rel=1e-4)
    assert model.logger.name_to_value["train/kl_mean"] == pytest.approx(kl.mean().item(), rel=1e-4)


def test_failed_line_search_says_why(tmp_path: Path) -> None:
    """A number among the tags; the words are the report's, and the log's of those who ask for its details."""
    model = collect(make())
    model.set_logger(configure(str(tmp_path), ["csv", "log"]))
    model.logger.set_level(DEBUG)
    model.line_search_max_iter, model.target_kl = 1, 1e3
    before = parameters_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train()
    model.logger.dump()
    logged = read_log(tmp_path)
    assert float(logged["is_line_search_success"]) == 0.0
    assert not [tag for tag in logged if "skipped" in tag]
    assert "no step accepted" in model.last_step.reason
    assert f"Line search: {model.last_step.reason}" in (tmp_path / "log.txt").read_text()
    assert not any("value" not in name for name in changed(before, model))


def test_frozen_critic_is_left_alone() -> None:
    model = collect(make())
    model.policy.mlp_extractor.value_net.requires_grad_(False)
    model.policy.value_net.requires_grad_(False)
    model.policy.spare = nn.Linear(2, 2)
    before = parameters_of(model)
    model.train()
    assert changed(before, model) == {name for name in before if "value" not in name and "spare" not in name}


def test_same_seed_gives_the_same_model_and_another_seed_another() -> None:
    models = [make("box", seed=seed).learn(128) for seed in (1, 1, 2)]
    values = [th.cat([value.flatten() for value in parameters_of(model).values()]) for model in models]
    assert th.equal(values[0], values[1])
    assert not th.equal(values[0], values[2])


def test_callbacks_schedules_progress_bar_and_continued_learning(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
    evaluation = EvalCallback(VecNormalize(make_vec_env("CartPole-v1", 1), training=False), eval_freq=64, verbose=0)
    model = TRPO("MlpPolicy", env, n_steps=64, batch_size=64, learning_rate=lambda progress: 1e-3 * progress, seed=0)
    model.learn(256, callback=[evaluation, CheckpointCallback(64, str(tmp_path))], progress_bar=True)
    assert model.num_timesteps == 256
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
    assert len(list(tmp_path.glob("*.zip"))) == 2
    assert evaluation.n_calls == 128
    assert evaluation.last_mean_reward > 0
    model.learn(128, reset_num_timesteps=False)
    assert model.num_timesteps == 384
    model.set_env(VecNormalize(make_vec_env("CartPole-v1", 2)))
    model.learn(10_000, callback=StopTrainingOnMaxEpisodes(3))
    assert model.num_timesteps < 10_000
    assert set(model.get_parameters()) == {"policy", "policy.optimizer"}


def test_processes_as_environments() -> None:
    env = make_vec_env("CartPole-v1", 2, seed=0, vec_env_cls=SubprocVecEnv)
    model = TRPO("MlpPolicy", env, n_steps=64, batch_size=64, seed=0).learn(128)
    env.close()
    assert model._n_updates == 1


@pytest.mark.skipif(not th.cuda.is_available(), reason="no CUDA device")
def test_learns_on_cuda() -> None:
    model = TRPO("MlpPolicy", DummyVecEnv([random_env]), n_steps=64, batch_size=64, device="cuda", seed=0).learn(128)
    assert model.policy.log_std.device.type == "cuda"


def test_cartpole_is_solved() -> None:
    settings = yaml.safe_load((Path(__file__).parents[2] / "hyperparams" / "trpo.yml").read_text())["CartPole-v1"]
    env, n_timesteps = make_vec_env("CartPole-v1", settings.pop("n_envs"), seed=1), int(settings.pop("n_timesteps"))
    model = TRPO(env=env, seed=1, **settings).learn(n_timesteps)
    assert n_timesteps == 100_000
    mean, _ = evaluate_policy(model, make_vec_env("CartPole-v1", 1, seed=100), 20)
    assert mean >= 475


class OneState(gym.Env[Any, Any]):
    """A bandit: always the same observation, one step an episode."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.array([0.5, -0.2], dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], -float(np.sum(np.square(action))), True, False, {}


@pytest.mark.parametrize("space", [spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([2, 3])])
def test_mean_and_maximum_constraint_agree_for_one_state(space: spaces.Space[Any]) -> None:
    settings: Any = {"n_steps": 64, "batch_size": 64, "seed": 0}
    mean, largest = (collect(TRPO("MlpPolicy", OneState(space), kl_constraint=kind, **settings)) for kind in ("mean", "max"))
    mean.train()
    largest.train()
    assert mean.last_step.accepted
    assert largest.last_step.step_size == pytest.approx(mean.last_step.step_size, rel=1e-4)
    th.testing.assert_close(actor_of(largest), actor_of(mean), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_maximum_constraint_holds_in_every_state_of_the_rollout(name: str) -> None:
    model = make(name, kl_constraint="max", target_kl=0.02, n_critic_updates=1)
    for _ in range(3):
        collect(model).train()
        assert model.last_step.max_kl <= 0.02
        assert model.last_step.mean_kl < model.last_step.max_kl
