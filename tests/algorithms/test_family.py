"""The family: each member is its siblings' limit where it should be, and holds the promises of them all."""

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
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO
from sb3_trpo_plus.algorithms.base import KLControlled
from sb3_trpo_plus.algorithms.ppo_penalty import LARGEST, SMALLEST, adapted
from sb3_trpo_plus.plots import plot_trust_region
from sb3_trpo_plus.policies.actor import actor_gradient
from sb3_trpo_plus.policies.distributions import action_distribution, kl_divergence
from sb3_trpo_plus.policies.fisher import empirical_fisher_vector_product, fisher_vector_product
from sb3_trpo_plus.trust_region.flat import flatten
from tests.conftest import DISTRIBUTIONS, DoubleExtractor, collect, parameters_of, random_env
from tests.algorithms.test_trpo import read_log

MEMBERS: dict[str, tuple[type[KLControlled], dict[str, Any]]] = {
    "empirical": (TRPO, {"fisher": "empirical"}),
    "max": (TRPO, {"kl_constraint": "max", "target_kl": 0.1}),
    "npg": (NPG, {}),
    "npg fixed": (NPG, {"step_size": 0.1}),
    "adaptive": (PPOPenalty, {"n_epochs": 2}),
    "dual": (PPOPenalty, {"n_epochs": 2, "penalty": "dual"}),
    "vine": (VineTRPO, {"n_rollout_states": 16, "rollout_length": 5}),
    "vine with a critic": (VineTRPO, {"n_rollout_states": 16, "rollout_length": 5, "bootstrap": True, "n_actions": 2}),
}


def make(member: str = "npg", name: str = "box", **kwargs: Any) -> Any:
    space, options = DISTRIBUTIONS[name]
    algorithm, own = MEMBERS[member]
    settings = {"n_steps": 64, "batch_size": 64, "n_critic_updates": 1, "seed": 0, **own, **options, **kwargs}
    return algorithm("MlpPolicy", random_env(space), **settings)


def actor_of(model: Any) -> th.Tensor:
    return flatten([value for name, value in parameters_of(model).items() if "value" not in name])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_learns_with_every_distribution(member: str, name: str) -> None:
    model = make(member, name)
    before = actor_of(model)
    model.learn(128)
    assert not th.equal(actor_of(model), before)
    assert all(th.isfinite(value).all() for value in parameters_of(model).values())


class RewardedImages(FakeImageEnv):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return observation, float(action), *rest


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_takes_images_and_dicts(member: str) -> None:
    algorithm, own = MEMBERS[member]
    images = RewardedImages(screen_height=36, screen_width=36, discrete=True)
    small = {"n_steps": 32, "batch_size": 32, "n_critic_updates": 1, "seed": 0, **own}
    for policy, env in (("CnnPolicy", images), ("MultiInputPolicy", SimpleMultiObsEnv(random_start=True))):
        options = {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 8}}} if policy == "CnnPolicy" else {}
        model: Any = algorithm(policy, env, **{**small, **options})
        before = parameters_of(model)
        model.learn(32)
        assert any(not th.equal(value, before[name]) for name, value in parameters_of(model).items())


@pytest.mark.parametrize("member", MEMBERS)
def test_saved_member_goes_on_as_the_one_that_was_not(member: str, tmp_path: Path) -> None:
    model = make(member).learn(64)
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", env=random_env("box"))
    observations = th.randn(5, 4).numpy()
    assert np.array_equal(
        model.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )
    own = {name: getattr(model, name) for name in MEMBERS[member][1]}
    assert {name: getattr(loaded, name) for name in own} == own
    if isinstance(model, PPOPenalty):
        assert loaded.penalty_coef == model.penalty_coef
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps >= 2 * model.num_timesteps


@pytest.mark.parametrize(("saved", "loads"), [("npg", PPOPenalty), ("adaptive", NPG), ("empirical", NPG), ("npg", VineTRPO)])
def test_file_of_another_member_is_refused(saved: str, loads: Any, tmp_path: Path) -> None:
    make(saved).save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=f"was saved by another algorithm, {loads.__name__} can't load it"):
        loads.load(tmp_path / "model.zip")


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("part", ["rewards", "observations", "advantages"])
def test_rollout_that_is_not_finite_changes_nothing(part: str, member: str) -> None:
    model = collect(make(member))
    getattr(model.rollout_buffer, part)[3] = math.nan
    before, optimizer = parameters_of(model), str(model.policy.optimizer.state_dict())
    with pytest.warns(UserWarning, match=f"the rollout's {part} are not all finite"):
        model.train()
    assert all(th.equal(value, before[name]) for name, value in parameters_of(model).items())
    assert str(model.policy.optimizer.state_dict()) == optimizer


@pytest.mark.parametrize(
    ("member", "arguments", "words"),
    [
        ("empirical", {"fisher": "exact"}, "fisher must be 'gauss_newton' or 'empirical', but it is 'exact'"),
        ("max", {"kl_constraint": None}, "kl_constraint must be 'mean' or 'max', but it is None"),
        ("npg", {"step_size": 0.0}, "step_size must be a positive number, but it is 0.0"),
        ("npg", {"step_size": math.nan}, "step_size must be a positive number, but it is nan"),
        ("npg", {"cg_damping": -1}, "cg_damping must be a number of at least 0, but it is -1"),
        ("empirical", {"log_improvement_bound": True, "gamma": 1.0}, "log_improvement_bound needs gamma below 1"),
        ("dual", {"penalty": "clip"}, "penalty must be 'adaptive' or 'dual', but it is 'clip'"),
        ("dual", {"penalty_coef": -1.0}, "penalty_coef must be a number of at least 0, but it is -1.0"),
        ("adaptive", {"penalty_coef": 0.0}, "penalty_coef must be positive for penalty='adaptive'"),
        ("dual", {"dual_learning_rate": 0}, "dual_learning_rate must be a positive number, but it is 0"),
        ("dual", {"n_epochs": 0}, "n_epochs must be an integer of at least 1, but it is 0"),
        ("adaptive", {"max_grad_norm": 0}, "max_grad_norm must be a positive number"),
        ("vine", {"n_rollout_states": 65}, r"n_rollout_states must be at most n_steps \* n_envs = 64 \* 1"),
        ("vine", {"n_rollout_states": 1, "n_actions": 1}, "normalize_advantage needs at least 2 branches"),
        ("vine", {"n_actions": 0}, "n_actions must be an integer of at least 1, but it is 0"),
        ("vine", {"rollout_length": 2.5}, "rollout_length must be an integer of at least 1, but it is 2.5"),
        ("vine", {"proposal": "greedy"}, "proposal must be 'policy' or 'uniform', but it is 'greedy'"),
    ],
)
def test_bad_arguments_are_named(member: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(member, **arguments)


@pytest.mark.parametrize("name", ["line_search_max_iter", "line_search_shrinking_factor", "kl_constraint"])
def test_npg_has_no_argument_of_the_line_search(name: str) -> None:
    with pytest.raises(TypeError, match=f"NPG has no line search and so no argument {name}"):
        make("npg", **{name: 1})


@pytest.mark.parametrize("name", ["box", "discrete", "multi_discrete", "multi_binary"])
def test_npg_is_trpo_whose_first_step_is_accepted(name: str) -> None:
    # What the damping adds to the quadratic model leaves room for the true KL.
    npg = collect(make("npg", name, cg_damping=1.0))
    npg.train()
    trpo = collect(make("empirical", name, fisher="gauss_newton", cg_damping=1.0))
    trpo.train()
    assert trpo.last_step.reason == "accepted after 0 backtracks"
    assert npg.last_step.step_size == trpo.last_step.step_size
    assert all(th.equal(value, parameters_of(trpo)[key]) for key, value in parameters_of(npg).items())


def test_npg_takes_kakades_step_of_a_fixed_size() -> None:
    """theta + alpha F^-1 g, with the explicit Fisher matrix of a small policy."""
    policy_kwargs = {"net_arch": [3], "features_extractor_class": DoubleExtractor}
    model = make("npg fixed", policy_kwargs=policy_kwargs, cg_damping=1e-3, cg_max_steps=200, cg_residual_tol=1e-12)
    model.policy.double()
    collect(model)
    before = actor_of(model)
    state = np.random.get_state()
    sample = model._sample()
    np.random.set_state(state)
    surrogate = model._surrogate(action_distribution(model.policy, sample.observations), sample)
    parameters, gradient = actor_gradient(model.policy, surrogate)
    product = fisher_vector_product(model.policy, sample.observations, parameters)
    matrix = th.stack([product(row).clone() for row in th.eye(len(gradient), dtype=th.float64)])
    model.train()
    natural = th.linalg.solve(matrix + 1e-3 * th.eye(len(gradient), dtype=th.float64), gradient)
    th.testing.assert_close(actor_of(model) - before, 0.1 * natural, rtol=1e-5, atol=1e-8)


def test_npg_step_may_exceed_the_limit_that_trpo_keeps() -> None:
    arguments = {"target_kl": 0.5, "cg_damping": 0.0, "cg_max_steps": 50}
    npg, trpo = collect(make("npg", **arguments)), collect(make("empirical", fisher="gauss_newton", **arguments))
    npg.train()
    trpo.train()
    assert npg.last_step.mean_kl > 0.5 >= trpo.last_step.mean_kl


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
    model = make("max", name, target_kl=0.02)
    for _ in range(3):
        collect(model).train()
        assert model.last_step.max_kl <= 0.02
        assert model.last_step.mean_kl < model.last_step.max_kl


@pytest.mark.parametrize("name", ["box", "discrete", "multi_discrete", "multi_binary", "gsde", "gsde_squashed"])
def test_empirical_and_gauss_newton_products_agree_as_samples_grow(name: str) -> None:
    """Their difference is the mean of N independent matrices of mean zero: it falls as 1 / sqrt(N)."""
    policy_kwargs = {"net_arch": [4], **DISTRIBUTIONS[name][1].get("policy_kwargs", {})}
    model = make("empirical", name, policy_kwargs=policy_kwargs)
    th.manual_seed(0)
    errors = {}
    for n in (500, 50_000):
        # Few states, often: they are the same in both forms, so only the actions' noise is left.
        observations = th.linspace(-1, 1, 20).reshape(5, 4).repeat(n // 5, 1)
        distribution = action_distribution(model.policy, observations)
        actions = distribution.distribution.sample() if "gsde" in name else distribution.sample()
        actions = th.tanh(actions) if "squashed" in name else actions
        parameters, _ = actor_gradient(model.policy, distribution.log_prob(actions).mean())
        gauss_newton = fisher_vector_product(model.policy, observations[:5], parameters)
        empirical = empirical_fisher_vector_product(model.policy, observations, actions, parameters)
        eye = th.eye(sum(parameter.numel() for parameter in parameters))
        expected, estimated = (th.stack([product(row).clone() for row in eye]) for product in (gauss_newton, empirical))
        errors[n] = ((estimated - expected).norm() / expected.norm()).item()
    assert errors[50_000] < 0.1
    assert errors[50_000] < errors[500] / 4


def test_empirical_and_gauss_newton_directions_agree_as_samples_grow() -> None:
    def cosine(n_steps: int) -> float:
        directions = []
        for fisher in ("empirical", "gauss_newton"):
            model = make(
                "empirical", "discrete", fisher=fisher, n_steps=n_steps, policy_kwargs={"net_arch": [4]}, cg_damping=0.01
            )
            collect(model).train()
            directions.append(model.last_step.direction)
        return th.cosine_similarity(*directions, dim=0).item()

    assert cosine(64) < cosine(8192)
    assert cosine(8192) > 0.98


@given(coefficient=st.floats(SMALLEST, LARGEST), kl=st.floats(0, 10), target_kl=st.floats(1e-6, 1))
def test_adaptive_penalty_is_doubled_and_halved_around_its_target(coefficient: float, kl: float, target_kl: float) -> None:
    new = adapted(coefficient, kl, target_kl)
    if kl > 1.5 * target_kl:
        assert new in (2 * coefficient, LARGEST)
    elif kl < target_kl / 1.5:
        assert new in (coefficient / 2, SMALLEST)
    else:
        assert new == coefficient
    assert SMALLEST <= new <= LARGEST


def kl_of_update(model: Any) -> float:
    """Of a training on the model's present rollout, computed by a policy of its own that stays as it was."""
    observations = next(model.rollout_buffer.get()).observations
    with th.no_grad():
        old = action_distribution(model.policy, observations)
    old.distribution = th.distributions.Normal(old.distribution.loc.clone(), old.distribution.scale.clone())
    model.train()
    with th.no_grad():
        return kl_divergence(old, action_distribution(model.policy, observations)).mean().item()


def test_dual_penalty_follows_the_gradient_of_the_dual() -> None:
    model = collect(make("dual", n_epochs=1, penalty_coef=2.0, dual_learning_rate=30.0, target_kl=0.02, learning_rate=0.01))
    kl = kl_of_update(model)
    assert kl > 1e-4
    assert model.penalty_coef == pytest.approx(2.0 + 30.0 * (kl - 0.02), rel=1e-4)


def test_dual_penalty_is_never_negative() -> None:
    model = collect(make("dual", penalty_coef=0.0, target_kl=10.0))
    model.train()
    assert model.penalty_coef == 0.0


@pytest.mark.parametrize("member", ["adaptive", "dual"])
def test_penalty_steers_the_kl_to_its_target(member: str) -> None:
    env = make_vec_env("Pendulum-v1", 2, seed=0)
    model = PPOPenalty(
        "MlpPolicy", env, n_steps=256, penalty=MEMBERS[member][1].get("penalty", "adaptive"), target_kl=0.01, seed=0,
        penalty_coef=100.0 if member == "adaptive" else 0.0, learning_rate=1e-3, dual_learning_rate=30.0, n_critic_updates=1,
    )  # fmt: skip
    kls = []
    for _ in range(24):
        collect(model)
        kls.append(kl_of_update(model))
    assert not 0.005 < np.mean(kls[:3]) < 0.02
    assert 0.005 < np.mean(kls[-12:]) < 0.02


def test_larger_penalty_leaves_the_policy_nearer() -> None:
    kls = []
    for coefficient in (1e-6, 1.0, 100.0):
        kls.append(kl_of_update(collect(make("adaptive", penalty_coef=coefficient, learning_rate=0.01, n_epochs=10))))
    assert kls[0] > kls[1] > kls[2]


def test_gradient_of_the_penalised_surrogate_is_that_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minibatch gradients at a policy that has left the old one, in float64, against the loss written out in NumPy."""
    options = {"net_arch": [3], "features_extractor_class": DoubleExtractor, "optimizer_class": th.optim.SGD}
    model = make("adaptive", policy_kwargs=options, penalty_coef=0.7, n_epochs=2, max_grad_norm=1e9, learning_rate=0.05)
    model.policy.double()
    collect(model)
    rollout = next(model.rollout_buffer.get())
    advantages = (rollout.advantages - rollout.advantages.mean()) / (rollout.advantages.std() + 1e-8)

    def gaussian() -> tuple[Any, Any]:
        distribution: Any = model.policy.get_distribution(rollout.observations).distribution
        return distribution.mean.detach().numpy(), distribution.stddev.detach().numpy()

    (old_mean, old_std), actions = gaussian(), rollout.actions.numpy()

    def loss() -> float:
        mean, std = gaussian()
        log_prob = (-0.5 * ((actions - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(1)
        kl = np.log(std / old_std) + (old_std**2 + (old_mean - mean) ** 2) / (2 * std**2) - 0.5
        return float(0.7 * kl.mean() - (np.exp(log_prob - rollout.old_log_prob.numpy()) * advantages.numpy()).mean())

    checked = []

    def step(*_: Any) -> None:
        weight, h = model.policy.action_net.weight, 1e-6
        for index in [(0, 0), (1, 2), (2, 1)]:
            with th.no_grad():
                weight[index] += h
                above = loss()
                weight[index] -= 2 * h
                below = loss()
                weight[index] += h
            assert weight.grad[index].item() == pytest.approx((above - below) / (2 * h), rel=1e-4, abs=1e-7)
            checked.append(index)
        plain()

    plain = model.policy.optimizer.step
    model._fit_critic = lambda _: None
    monkeypatch.setattr(model.policy.optimizer, "step", step)
    model.train()
    assert len(checked) == 6


@pytest.mark.parametrize("learning_rate", [1e2, 1e30])
@pytest.mark.parametrize("member", ["adaptive", "dual"])
def test_penalised_update_that_is_not_finite_changes_nothing(member: str, learning_rate: float) -> None:
    model = make(member, n_epochs=10, dual_learning_rate=1.0).learn(64)
    collect(model)
    before, coefficient = actor_of(model), model.penalty_coef
    moments = {key: value["exp_avg"].clone() for key, value in model.policy.optimizer.state_dict()["state"].items()}
    model.policy.optimizer.param_groups[0]["lr"] = learning_rate
    with pytest.warns(UserWarning, match="the policy stays as it was: .* Lower learning_rate"):
        model._improve_policy()
    assert th.equal(actor_of(model), before)
    assert model.penalty_coef == coefficient
    after = model.policy.optimizer.state_dict()["state"]
    assert all(th.equal(value["exp_avg"], moments[key]) for key, value in after.items())


@pytest.mark.parametrize("member", ["adaptive", "npg", "empirical"])
def test_equal_advantages_leave_the_policy_as_it_is(member: str) -> None:
    model = collect(make(member)).learn(64)
    collect(model)
    model.rollout_buffer.advantages[:] = 3.0
    before = actor_of(model)
    with pytest.warns(UserWarning, match="all advantages of the rollout are equal"):
        model._improve_policy()
    assert th.equal(actor_of(model), before)


def test_logged_numbers_are_the_updates(tmp_path: Path) -> None:
    for member, expected in {
        "npg": {"step_size", "kl_mean", "kl_max", "cg_iterations", "policy_objective", "entropy", "std"},
        "dual": {"penalty_coef", "kl_mean", "kl_max", "policy_objective", "entropy", "std", "value_loss"},
    }.items():
        model = make(member)
        model.set_logger(configure(str(tmp_path / member), ["csv"]))
        model.learn(64)
        model.logger.dump()
        logged = read_log(tmp_path / member)
        assert expected <= logged.keys()
        assert not [tag for tag in logged if "line_search" in tag]
        if member == "dual":
            assert float(logged["penalty_coef"]) == pytest.approx(model.penalty_coef)


@pytest.mark.parametrize("name", ["box", "discrete"])
def test_improvement_bound_is_the_papers_with_the_rollouts_estimates(name: str, tmp_path: Path) -> None:
    """L(new) - L(old) - 4 eps gamma / (1 - gamma)^2 max KL, written out with torch's own KL of the joint action."""
    model = make("empirical", name, fisher="gauss_newton", log_improvement_bound=True, gamma=0.9)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    collect(model)
    rollout = next(model.rollout_buffer.get())
    actions = rollout.actions.long().flatten() if name == "discrete" else rollout.actions
    old_policy = copy.deepcopy(model.policy)
    model.train()
    with th.no_grad():
        old = action_distribution(old_policy, rollout.observations)
        new = action_distribution(model.policy, rollout.observations)
        ratio = th.exp(new.log_prob(actions) - old.log_prob(actions))
        gain = ((ratio - 1) * rollout.advantages).mean().item() / 0.1
        kl = th.distributions.kl_divergence(old.distribution, new.distribution)
        joint = kl.sum(1) if name == "box" else kl
    bound = gain - 4 * rollout.advantages.abs().max().item() * 0.9 / 0.01 * joint.max().item()
    model.logger.dump()
    assert float(read_log(tmp_path)["improvement_lower_bound"]) == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize("member", ["empirical", "max", "npg", "vine"])
def test_trust_region_is_drawn_from_the_last_update(member: str) -> None:
    model = make(member, target_kl=0.05)
    with pytest.raises(ValueError, match=r"call learn\(\) first"):
        plot_trust_region(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.learn(128)
    before, state, report = parameters_of(model), np.random.get_state()[1].copy(), model.last_step
    figure = plot_trust_region(model)
    assert all(th.equal(value, before[name]) for name, value in parameters_of(model).items())
    assert np.array_equal(np.random.get_state()[1], state)
    objective, constraint = figure.axes
    lines: dict[str, Callable[[float], float]] = {}
    for axes in (objective, constraint):
        for line in axes.lines:
            x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
            lines[f"{axes.get_title()}: {line.get_label()}"] = lambda at, x=x, y=y: float(np.interp(at, x, y))
    size, candidate = report.tried[-1]
    # The true curves pass through the candidates that the search has seen.
    surrogate, kl = lines["Objective: surrogate"], lines[f"Constraint: {'maximum' if member == 'max' else 'mean'} KL"]
    assert surrogate(size) == pytest.approx(candidate.surrogate - report.surrogate_old, rel=0.05, abs=1e-5)
    assert kl(size) == pytest.approx(candidate.max_kl if member == "max" else candidate.mean_kl, rel=0.05)
    assert surrogate(0) == pytest.approx(0, abs=1e-6)
    assert kl(0) == pytest.approx(0, abs=1e-6)
    assert lines["Objective: linear model"](size) == pytest.approx(size * report.slope, rel=1e-6)
    if report.accepted:
        assert lines["Objective: accepted"](size) == pytest.approx(candidate.surrogate - report.surrogate_old)


def test_trust_region_is_drawn_after_a_training_that_a_callback_ended() -> None:
    model = make("empirical", sub_sampling_factor=3).learn(64)
    before = plot_trust_region(model)

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return False

    model.learn(64, Stop(), reset_num_timesteps=False)
    after = plot_trust_region(model)
    for one, other in zip(before.axes, after.axes, strict=True):
        for line, same in zip(one.lines, other.lines, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), same.get_ydata())


def test_trust_region_shows_a_step_that_overflowed() -> None:
    model = make("empirical", target_kl=1e30).learn(64)
    curve = plot_trust_region(model).axes[1].lines[0].get_ydata()
    assert np.isnan(curve).any()
    assert curve[0] == pytest.approx(0.0, abs=1e-6)


def test_trust_region_of_a_skipped_update_is_not_that_of_the_one_before() -> None:
    model = make("empirical").learn(64)
    collect(model).rollout_buffer.rewards[0] = np.nan
    with pytest.warns(UserWarning, match="rewards"):
        model.train()
    with pytest.raises(ValueError, match="no policy update"):
        plot_trust_region(model)


def test_refused_step_of_npg_is_a_warning() -> None:
    model = collect(make("npg fixed", step_size=1e38))
    before = actor_of(model)
    with pytest.warns(UserWarning, match="the policy stays as it was: no step accepted .not finite 1x"):
        model.train()
    assert th.equal(actor_of(model), before)


def test_errors_of_the_users_own_policy_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for member in ("adaptive", "empirical"):
        model = collect(make(member))
        before, calls = actor_of(model), []
        plain = model.policy.get_distribution

        def later(observations: Any, plain: Any = plain, calls: list[int] = calls) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise ValueError("mine")
            return plain(observations)

        monkeypatch.setattr(model.policy, "get_distribution", later)
        with pytest.raises(ValueError, match=r"^mine$"):
            model.train()
        assert th.equal(actor_of(model), before)


def test_trust_region_without_a_direction_says_so() -> None:
    model = collect(make("npg"))
    model.rollout_buffer.advantages[:] = 1.0
    with pytest.warns(UserWarning, match="equal"):
        model.train()
    with pytest.raises(ValueError, match="no search direction, there is nothing to draw: the gradient"):
        plot_trust_region(model)


class Noted(BaseCallback):
    """Notes what each update but the last logs under some tags."""

    def __init__(self, *tags: str) -> None:
        super().__init__()
        self.tags = [f"train/{tag}" for tag in tags]
        self.seen: list[list[float]] = []

    def _on_rollout_start(self) -> None:
        values = self.logger.name_to_value
        if self.tags[0] in values:
            self.seen.append([values[tag] for tag in self.tags])

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("member", ["npg", "empirical", "adaptive", "vine with a critic"])
def test_limit_follows_its_schedule(member: str, tmp_path: Path) -> None:
    model = make(member, target_kl=LinearSchedule(0.04, 0.0, 1.0))
    assert model.kl_limit == 0.04
    limits = Noted("target_kl", "kl_mean")
    model.learn(64 * 20, limits, log_interval=1000)
    expected = [0.04 * max(0.0, 1 - steps / 1280) for steps in range(64, 1280, 64)]
    if "vine" not in member:
        assert [limit for limit, _ in limits.seen] == pytest.approx(expected)
    if member == "empirical":
        assert all(kl <= limit for limit, kl in limits.seen)
        assert max(kl for limit, kl in limits.seen if limit > 0.02) > 0.02
    assert model.kl_limit == 0
    model.save(tmp_path / "model.zip")
    assert type(model).load(tmp_path / "model.zip").target_kl(0.5) == 0.02


@pytest.mark.parametrize("member", ["npg", "empirical"])
def test_limit_of_zero_leaves_the_policy_as_it_is(member: str) -> None:
    model = collect(make(member, target_kl=lambda progress: 0.01 * progress))
    model._current_progress_remaining = 0.0
    before = actor_of(model)
    model.train()
    assert th.equal(actor_of(model), before)


@pytest.mark.parametrize("member", ["npg", "empirical", "adaptive", "vine with a critic"])
def test_entropy_coefficient_follows_its_schedule(member: str, tmp_path: Path) -> None:
    with_entropy, without = (collect(make(member, ent_coef=schedule)) for schedule in (LinearSchedule(0.4, 0.0, 1.0), 0.0))
    with_entropy.set_parameters(without.get_parameters())
    sample = without._sample()
    distribution = action_distribution(without.policy, sample.observations)
    entropy = distribution.distribution.entropy().sum(-1).mean().item()
    for remaining in (1.0, 0.25, 0.0):
        with_entropy._current_progress_remaining = remaining
        gained, plain = (model._surrogate(distribution, sample).item() for model in (with_entropy, without))
        assert gained - plain == pytest.approx(0.4 * remaining * entropy, abs=1e-6)
    with_entropy._current_progress_remaining = 0.25
    with_entropy.train()
    assert with_entropy.logger.name_to_value["train/ent_coef"] == pytest.approx(0.1)
    with_entropy.save(tmp_path / "model.zip")
    assert type(with_entropy).load(tmp_path / "model.zip").ent_coef(0.5) == 0.2


@pytest.mark.parametrize("member", ["npg", "empirical", "adaptive", "vine"])
def test_discount_follows_its_schedule(member: str) -> None:
    constant, function = (make(member, gamma=gamma).learn(192) for gamma in (0.6, lambda progress: 0.6))
    assert th.equal(actor_of(constant), actor_of(function))
    noted = Noted("gamma")
    falling = make(member, gamma=LinearSchedule(0.9, 0.6, 1.0)).learn(64 * 3, noted, log_interval=1000)
    assert not th.equal(actor_of(falling), actor_of(function))
    if member != "vine":
        assert [gamma for (gamma,) in noted.seen] == pytest.approx([0.9, 0.8])
        assert falling.rollout_buffer.gamma == pytest.approx(0.7)


def test_bound_without_discount_is_none() -> None:
    model = collect(make("empirical", log_improvement_bound=True, gamma=lambda progress: 1.0))
    model.train()
    assert model.logger.name_to_value["train/improvement_lower_bound"] == -math.inf


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_discount_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match=rf"gamma must be a number from 0 to 1, but it is {value}"):
        make(gamma=value)
    with pytest.raises(ValueError, match=rf"gamma at progress_remaining=1 must be a number from 0 to 1, but it is {value}"):
        make(gamma=lambda progress: value).learn(64)


@pytest.mark.parametrize("value", [-0.01, math.nan, math.inf])
@pytest.mark.parametrize("name", ["target_kl", "ent_coef"])
@pytest.mark.parametrize("member", ["npg", "empirical", "adaptive"])
def test_schedule_out_of_range_changes_nothing(member: str, name: str, value: float) -> None:
    model = collect(make(member, **{name: lambda progress: value}))
    before, state = parameters_of(model), copy.deepcopy(model.policy.optimizer.state_dict())
    with pytest.raises(ValueError, match=rf"{name} at progress_remaining=1 must be a number of at least 0, but it is {value}"):
        model.train()
    assert all(th.equal(value, before[name]) for name, value in parameters_of(model).items())
    assert model.policy.optimizer.state_dict() == state
