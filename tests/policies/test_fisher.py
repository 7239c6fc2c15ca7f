"""The bridge to SB3's policies: which parameters are the actor's, its KL, its Fisher matrix."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from torch import distributions as td
from torch import nn

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.policies.actor import actor_gradient
from sb3_trpo_plus.policies.distributions import action_distribution, kl_divergence
from sb3_trpo_plus.policies.fisher import fisher_vector_product
from sb3_trpo_plus.policies.observations import every
from sb3_trpo_plus.policies.plain import plain_actor
from sb3_trpo_plus.trust_region.fisher import hessian_fisher
from tests.conftest import DISTRIBUTIONS, DoubleExtractor, collect, random_env


def make(name: str, **kwargs: Any) -> TRPO:
    space, options = DISTRIBUTIONS[name]
    policy_kwargs = {"net_arch": [5], **options.get("policy_kwargs", {}), **kwargs.pop("policy_kwargs", {})}
    return TRPO("MlpPolicy", random_env(space), n_steps=32, seed=0, **{**options, **kwargs, "policy_kwargs": policy_kwargs})


def actor_names(model: TRPO) -> set[str]:
    rollout = next(collect(model).rollout_buffer.get())
    distribution = action_distribution(model.policy, rollout.observations)
    actions = rollout.actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else rollout.actions
    found, gradient = actor_gradient(model.policy, distribution.log_prob(actions).mean())
    assert len(gradient) == sum(parameter.numel() for parameter in found)
    ids = {id(parameter) for parameter in found}
    return {name for name, parameter in model.policy.named_parameters() if id(parameter) in ids}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_actor_is_what_the_action_distribution_depends_on(name: str) -> None:
    model = make(name)
    expected = {n for n, _ in model.policy.named_parameters() if "value" not in n}
    assert actor_names(model) == expected
    assert ("log_std" in expected) == (DISTRIBUTIONS[name][0] == "box")


class OddlyNamed(ActorCriticPolicy):
    """An actor whose parameters have "value" in their names, and a critic whose have not: names must not matter."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.value_of_actions, self.critic = self.action_net, self.value_net
        del self.action_net, self.value_net
        self.spare = nn.Linear(2, 2)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> sb3.Distribution:
        return self.action_dist.proba_distribution(self.value_of_actions(latent_pi), self.log_std)

    def predict_values(self, obs: Any) -> th.Tensor:
        features = self.extract_features(obs, self.vf_features_extractor)
        return self.critic(self.mlp_extractor.forward_critic(features))

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)


def test_actor_is_found_whatever_its_parameters_are_called() -> None:
    model = TRPO(OddlyNamed, random_env(), n_steps=32, seed=0)
    names = actor_names(model)
    assert "value_of_actions.weight" in names
    assert not any(name.startswith(("critic", "spare", "mlp_extractor.value_net")) for name in names)
    spare = model.policy.spare.weight.detach().clone()
    critic = model.policy.critic.weight.detach().clone()
    model.learn(64)
    assert th.equal(model.policy.spare.weight, spare)
    assert not th.equal(model.policy.critic.weight, critic)


def test_frozen_parameters_are_not_the_actors() -> None:
    model = make("box")
    model.policy.log_std.requires_grad_(False)
    assert "log_std" not in actor_names(model)
    before = model.policy.log_std.clone()
    model.learn(64)
    assert th.equal(model.policy.log_std, before)


def test_distribution_without_parameters_is_an_error() -> None:
    model = make("box")
    for parameter in model.policy.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="depends on none of the policy's trainable parameters"):
        model.learn(32)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_kl_is_that_of_sb3_averaged_as_sb3_contrib_does(name: str) -> None:
    model, other = make(name), make(name)
    with th.no_grad():
        for parameter in other.policy.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    observations = th.randn(20, 4)
    old = action_distribution(model.policy, observations)
    new = action_distribution(other.policy, observations)
    kl = kl_divergence(old, new)
    assert kl.shape == (20,)
    th.testing.assert_close(kl.mean(), sb3.kl_divergence(old, new).mean())
    assert kl_divergence(old, old).abs().max() == 0


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_fisher_product_of_every_sb3_distribution_is_the_hessian_of_its_kl(name: str) -> None:
    policy = make(name, policy_kwargs={"features_extractor_class": DoubleExtractor}).policy.double()
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    observations = th.randn(10, 4)
    parameters = [p for n, p in policy.named_parameters() if "value" not in n]
    with th.no_grad():
        old = action_distribution(policy, observations)
    new = action_distribution(policy, observations)
    hessian = hessian_fisher(sb3.kl_divergence(old, new).mean(), parameters)
    product = fisher_vector_product(policy, observations, parameters)
    identity = th.eye(sum(p.numel() for p in parameters), dtype=th.float64)
    matrix, oracle = th.stack([product(row) for row in identity]), th.stack([hessian(row) for row in identity])
    assert oracle.abs().max() > 1e-3
    th.testing.assert_close(matrix, oracle, rtol=1e-8, atol=1e-10)


class BetaDistribution(sb3.Distribution):
    """A distribution that SB3 lacks: Beta, stretched over [-1, 1]."""

    def proba_distribution_net(self, latent_dim: int, action_dim: int) -> nn.Module:
        return nn.Linear(latent_dim, 2 * action_dim)

    def proba_distribution(self, outputs: th.Tensor) -> "BetaDistribution":
        alpha, beta = (1 + nn.functional.softplus(outputs)).chunk(2, dim=-1)
        self.distribution = td.Beta(alpha, beta)
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return self.distribution.log_prob(((actions + 1) / 2).clamp(1e-4, 1 - 1e-4)).sum(-1) - actions.shape[-1] * math.log(2)

    def entropy(self) -> th.Tensor:
        return self.distribution.entropy().sum(-1)

    def sample(self) -> th.Tensor:
        return 2 * self.distribution.sample() - 1

    def mode(self) -> th.Tensor:
        return 2 * self.distribution.mean - 1

    actions_from_params = log_prob_from_params = proba_distribution_net


class BetaPolicy(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_dist = BetaDistribution()
        self.action_net = self.action_dist.proba_distribution_net(self.mlp_extractor.latent_dim_pi, 3)
        del self.log_std
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> sb3.Distribution:
        return self.action_dist.proba_distribution(self.action_net(latent_pi))


def test_custom_distribution_has_its_kl_differentiated_twice() -> None:
    model = collect(TRPO(BetaPolicy, random_env(), n_steps=64, seed=0))
    observations = next(model.rollout_buffer.get()).observations
    old = action_distribution(model.policy, observations)
    model.train()
    kl = td.kl_divergence(old.distribution, action_distribution(model.policy, observations).distribution)
    assert 0.2 * model.target_kl < kl.mean() <= model.target_kl


def test_custom_distribution_without_a_kl_is_an_error_that_says_so() -> None:
    unknown = BetaDistribution()
    unknown.distribution = td.LKJCholesky(2)
    with pytest.raises(NotImplementedError, match=r"LKJCholesky"):
        kl_divergence(unknown, unknown)


def test_every_takes_every_kth_sample_of_tensors_and_dicts() -> None:
    data = th.arange(10).reshape(10, 1)
    assert every(data, 3).flatten().tolist() == [0, 3, 6, 9]
    assert every({"a": data}, 4)["a"].flatten().tolist() == [0, 4, 8]


class ImageExtractor(BaseFeaturesExtractor):
    """Two small convolutions, the activation between them one that may be given no rule for forward mode."""

    def __init__(self, observation_space: spaces.Box, activation: Any = th.tanh) -> None:
        super().__init__(observation_space, 2)
        self.first, self.second = nn.Conv2d(1, 2, 3, 2), nn.Conv2d(2, 2, 2)
        self.activation = activation

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.second(self.activation(self.first(observations.double()))).flatten(1)


class ReverseOnly(th.autograd.Function):
    """tanh without forward mode."""

    @staticmethod
    def forward(ctx: Any, inputs: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(inputs)
        return th.tanh(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        (inputs,) = ctx.saved_tensors
        return gradient * (1 - th.tanh(inputs) ** 2)


@pytest.mark.parametrize("activation", [th.tanh, ReverseOnly.apply])
@pytest.mark.parametrize("share_features_extractor", [True, False])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_fisher_product_of_convolutions_is_the_hessian_of_sb3s_kl(
    name: str, share_features_extractor: bool, activation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks, the last of them smaller, and with the parameters back in their places afterwards."""
    monkeypatch.setattr("sb3_trpo_plus.policies.fisher.CHUNK", 5)
    space, options = DISTRIBUTIONS[name]
    policy_kwargs = {
        "net_arch": [3], "features_extractor_class": ImageExtractor, "features_extractor_kwargs": {"activation": activation},
        "share_features_extractor": share_features_extractor, **options.get("policy_kwargs", {}),
    }  # fmt: skip
    env = random_env(space, spaces.Box(-1.0, 1.0, (1, 6, 6)))
    policy = TRPO("MlpPolicy", env, n_steps=32, seed=0, **{**options, "policy_kwargs": policy_kwargs}).policy.double()
    observations = th.rand(13, 1, 6, 6, dtype=th.float64)
    names = {n for n, _ in policy.named_parameters()}
    old, new = (action_distribution(policy, observations) for _ in range(2))
    parameters, _ = actor_gradient(policy, kl_divergence(old, new).mean())
    with th.no_grad():
        old = action_distribution(policy, observations)
    new = action_distribution(policy, observations)
    hessian = hessian_fisher(sb3.kl_divergence(old, new).mean(), parameters)
    product = fisher_vector_product(policy, observations, parameters)
    for _ in range(3):
        vector = th.randn(sum(p.numel() for p in parameters), dtype=th.float64)
        expected = hessian(vector)
        assert expected.abs().max() > 1e-4
        th.testing.assert_close(product(vector), expected, rtol=1e-7, atol=1e-9)
    assert {n for n, _ in policy.named_parameters()} == names
    assert all(isinstance(parameter, nn.Parameter) for parameter in policy.parameters())


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_closed_form_of_plain_mlps_is_the_general_product(name: str) -> None:
    """Only of plain MLPs there is one: an extractor that does nothing more keeps the general form, in the same precision."""
    plain, general = make(name), make(name, policy_kwargs={"features_extractor_class": FloatExtractor})
    general.policy.load_state_dict(plain.policy.state_dict())
    observations = th.randn(40, 4)
    products = []
    for model in (plain, general):
        old = action_distribution(model.policy, observations)
        new = action_distribution(model.policy, observations)
        parameters, _ = actor_gradient(model.policy, kl_divergence(old, new).mean())
        th.manual_seed(1)
        vectors = th.randn(5, sum(p.numel() for p in parameters))
        product = fisher_vector_product(model.policy, observations, parameters)
        products.append([product(vector).clone() for vector in vectors])
    assert plain_actor(plain.policy) is not None
    assert plain_actor(general.policy) is None
    for one, other in zip(*products, strict=True):
        th.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class FloatExtractor(FlattenExtractor):
    pass
