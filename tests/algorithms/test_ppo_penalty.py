"""PPO with the penalised surrogate: its gradient, its coefficient, and updates that are taken back."""

from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo_plus import PPOPenalty
from sb3_trpo_plus.algorithms.ppo_penalty import LARGEST, SMALLEST, adapted
from sb3_trpo_plus.policies.distributions import action_distribution, kl_divergence
from tests.algorithms.members import MEMBERS, actor_of, make
from tests.conftest import DoubleExtractor, collect


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
    assert model.logger.name_to_value["train/skipped_policy_not_finite"] == 1
    assert th.equal(actor_of(model), before)
    assert model.penalty_coef == coefficient
    after = model.policy.optimizer.state_dict()["state"]
    assert all(th.equal(value["exp_avg"], moments[key]) for key, value in after.items())
