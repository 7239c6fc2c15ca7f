"""The bridge to SB3's policies: which parameters are the actor's, its KL, its Fisher matrix."""

import math
from collections.abc import Callable
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
from torch.autograd.function import once_differentiable

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.policies.actor import actor_gradient, parameters_at
from sb3_trpo_plus.policies.distributions import action_distribution, kl_divergence
from sb3_trpo_plus.policies.fisher import empirical_fisher_vector_product, fisher_vector_product, kl_curvature
from sb3_trpo_plus.policies.observations import every
from sb3_trpo_plus.policies.plain import plain_actor
from sb3_trpo_plus.trust_region.fisher import hessian_fisher
from sb3_trpo_plus.trust_region.flat import unflatten
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
    settings = {"n_steps": 32, "seed": 0, **options, "policy_kwargs": policy_kwargs}
    # The oracle needs second derivatives, which are those of the same function.
    policy, twin = (TRPO("MlpPolicy", env, **settings).policy.double() for _ in range(2))
    for module in twin.modules():
        if isinstance(module, ImageExtractor):
            module.activation = th.tanh
    if "use_expln" in policy_kwargs and activation is not th.tanh:
        # SB3's expln jumps by 1e-6 at 0, where log_std begins: no derivative is one that finite differences find.
        for one in (policy, twin):
            one.log_std.data.fill_(-0.3)
    observations = th.rand(13, 1, 6, 6, dtype=th.float64)
    names = {n for n, _ in policy.named_parameters()}
    with th.no_grad():
        old = action_distribution(twin, observations)
    of_twin, _ = actor_gradient(twin, kl_divergence(old, action_distribution(twin, observations)).mean())
    hessian = hessian_fisher(sb3.kl_divergence(old, action_distribution(twin, observations)).mean(), of_twin)
    parameters, _ = actor_gradient(policy, kl_divergence(old, action_distribution(policy, observations)).mean())
    product = fisher_vector_product(policy, observations, parameters)
    # By finite differences where there is neither forward mode nor a second derivative.
    rtol, atol = (1e-7, 1e-9) if activation is th.tanh else (1e-6, 1e-8)
    for _ in range(3):
        vector = th.randn(sum(p.numel() for p in parameters), dtype=th.float64)
        expected = hessian(vector)
        assert expected.abs().max() > 1e-4
        th.testing.assert_close(product(vector), expected, rtol=rtol, atol=atol)
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


class OfSequences(BaseFeaturesExtractor):
    """
    Any network on observations of shape (3, 4), as sequences of 3 or as flat vectors, in the precision of its parameters.

    :param make: the network, whose output is flattened
    :param flat: whether it takes vectors of length 12
    """

    def __init__(self, observation_space: spaces.Box, make: Callable[[], nn.Module], flat: bool = False) -> None:
        super().__init__(observation_space, 1)
        self.network, self.flat = make(), flat
        self._features_dim = self(th.zeros(1, 3, 4)).shape[1]

    def forward(self, observations: th.Tensor) -> th.Tensor:
        inputs = observations.flatten(1) if self.flat else observations
        return self.network(inputs.to(next(self.network.parameters()).dtype)).flatten(1)


class ConvLstm(nn.Module):
    def __init__(self, conv: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 3, 2) if conv else nn.Identity()
        self.lstm = nn.LSTM(3 if conv else 4, 2, batch_first=True)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        hidden = self.conv(inputs.transpose(1, 2)).transpose(1, 2) if isinstance(self.conv, nn.Conv1d) else inputs
        return self.lstm(hidden)[0][:, -1]


class Attention(nn.Module):
    def __init__(self, need_weights: bool, conv: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 1) if conv else nn.Identity()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.need_weights = need_weights

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        hidden = self.conv(inputs.transpose(1, 2)).transpose(1, 2) if isinstance(self.conv, nn.Conv1d) else inputs
        return self.attention(hidden, hidden, hidden, need_weights=self.need_weights)[0]


class GridSample(nn.Module):
    """Looks at the observation where a network of its own tells it to."""

    def __init__(self, conv: bool = False) -> None:
        super().__init__()
        self.where = nn.Linear(12, 4)
        self.conv = nn.Conv2d(1, 1, 1) if conv else nn.Identity()

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        grid = th.tanh(self.where(inputs.flatten(1))).view(-1, 2, 1, 2)
        return nn.functional.grid_sample(self.conv(inputs[:, None]), grid, align_corners=True)


class Distances(nn.Module):
    """To learned places, in a norm of which torch has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(th.randn(2, 4))

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return th.cdist(inputs, self.places, p=3)


class Bag(nn.Module):
    """Embeddings of what the observations are rounded to, whose gradient torch does not differentiate."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag, self.mode = nn.EmbeddingBag(3, 2, mode=mode), mode
        nn.init.normal_(self.bag.weight, std=0.3)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        indices = inputs.flatten(1).clamp(-1, 1).round().long() + 1
        weights = self.bag.weight[indices].tanh().sum(-1) if self.mode == "sum" else None
        return self.bag(indices, per_sample_weights=weights)


class Once(th.autograd.Function):
    """tanh whose backward must not be differentiated, as its author says."""

    @staticmethod
    def forward(ctx: Any, inputs: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(inputs)
        return th.tanh(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        (inputs,) = ctx.saved_tensors
        return gradient * (1 - th.tanh(inputs) ** 2)


class ByNumpy(th.autograd.Function):
    """tanh whose backward leaves torch, so that its second derivative seems to be 0."""

    @staticmethod
    def forward(ctx: Any, inputs: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(inputs)
        return th.tanh(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        (inputs,) = ctx.saved_tensors
        return th.from_numpy(gradient.detach().numpy() * (1 - np.tanh(inputs.detach().numpy()) ** 2))


class Applying(nn.Module):
    def __init__(self, function: type[th.autograd.Function], conv: bool = False) -> None:
        super().__init__()
        self.function = function
        self.first: nn.Module = nn.Conv1d(3, 2, 3) if conv else nn.Linear(4, 3)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return self.function.apply(self.first(inputs))


def _compiled() -> nn.Module:
    return th.compile(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), backend="eager")


def _compiled_in_place() -> nn.Module:
    module = nn.Sequential(nn.Conv1d(3, 2, 2), nn.Tanh())
    module.compile(backend="eager")
    return module


def _transformer(dropout: float, conv: bool = False) -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=5, dropout=dropout, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    return nn.Sequential(nn.Conv1d(3, 3, 1), encoder) if conv else encoder


def _linear(norm: Callable[[nn.Module], nn.Module], layer: Callable[..., nn.Module] = nn.Linear, *sizes: int) -> nn.Module:
    return nn.Sequential(norm(layer(*(sizes or (4, 3)))), nn.Tanh())


#: By name, and whether its Jacobian is found by finite differences
MODULES: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "conv": (lambda: nn.Sequential(nn.Conv1d(3, 2, 2), nn.Tanh(), nn.Conv1d(2, 2, 2)), False),
    "conv and LSTM": (ConvLstm, False),
    "LSTM": (lambda: ConvLstm(conv=False), False),
    "attention with weights": (lambda: Attention(True), False),
    "attention without weights": (lambda: Attention(False), False),
    "conv and attention": (lambda: Attention(False, conv=True), False),
    "transformer": (lambda: _transformer(0.0), False),
    "transformer with dropout": (lambda: _transformer(0.3), False),
    "conv and transformer": (lambda: _transformer(0.3, conv=True), False),
    "old weight norm": (lambda: _linear(nn.utils.weight_norm), False),
    "weight norm": (lambda: _linear(nn.utils.parametrizations.weight_norm), False),
    "old weight norm of conv": (lambda: _linear(nn.utils.weight_norm, nn.Conv1d, 3, 2, 2), False),
    "weight norm of conv": (lambda: _linear(nn.utils.parametrizations.weight_norm, nn.Conv1d, 3, 2, 2), False),
    "old spectral norm": (lambda: _linear(nn.utils.spectral_norm), False),
    "spectral norm": (lambda: _linear(nn.utils.parametrizations.spectral_norm), False),
    "spectral norm of conv": (lambda: _linear(nn.utils.parametrizations.spectral_norm, nn.Conv1d, 3, 2, 2), False),
    "batch norm": (lambda: nn.Sequential(nn.Conv1d(3, 2, 2), nn.BatchNorm1d(2), nn.Tanh()), False),
    "compiled": (_compiled, False),
    "compiled in place": (_compiled_in_place, False),
    "grid_sample": (GridSample, False),
    "conv and grid_sample": (lambda: GridSample(conv=True), False),
    "distances": (Distances, True),
    "bag of embeddings": (lambda: Bag("mean"), True),
    "bag of weighted embeddings": (lambda: Bag("sum"), True),
    "function": (lambda: Applying(ReverseOnly), True),
    "function after conv": (lambda: Applying(ReverseOnly, conv=True), True),
    "once differentiable": (lambda: Applying(Once), True),
    "once differentiable after conv": (lambda: Applying(Once, conv=True), True),
    "by NumPy": (lambda: Applying(ByNumpy), True),
    "by NumPy after conv": (lambda: Applying(ByNumpy, conv=True), True),
}
STATES = 6


def policy_with(make_module: Callable[[], nn.Module], space: str = "box", double: bool = True) -> Any:
    """In evaluation mode, as policies are updated."""
    env = random_env(space, spaces.Box(-1.0, 1.0, (3, 4)))
    extractor = {"features_extractor_class": OfSequences, "features_extractor_kwargs": {"make": make_module}}
    th.manual_seed(0)
    model = TRPO("MlpPolicy", env, n_steps=32, seed=0, policy_kwargs={**extractor, "net_arch": []})
    policy = model.policy.double() if double else model.policy
    with th.no_grad():
        # At the beginning SB3's last layer is nearly 0, and so would be most of the matrix.
        policy.action_net.weight.normal_()
    policy.set_training_mode(False)
    return policy


def rows_of(output: th.Tensor, parameters: list[nn.Parameter]) -> th.Tensor:
    """The Jacobian of each state's output, shape (states, outputs, parameters), by one backward pass a number."""
    rows = [
        nn.utils.parameters_to_vector(
            th.autograd.grad(number, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
        )
        for number in output.reshape(-1)
    ]
    return th.stack(rows).view(len(output), -1, len(rows[0]))


def explicit_matrices(policy: Any, observations: th.Tensor, parameters: list[nn.Parameter]) -> th.Tensor:
    """J'MJ of each state, shape (states, parameters, parameters), with the metric of the textbooks."""
    distribution = action_distribution(policy, observations).distribution
    if isinstance(distribution, td.Normal):
        weights = 1 / distribution.scale.detach() ** 2 / distribution.loc.shape[1]
        of_loc, of_scale = rows_of(distribution.loc, parameters), rows_of(distribution.scale, parameters)
        return th.einsum("soi,so,soj->sij", of_loc, weights, of_loc) + th.einsum(
            "soi,so,soj->sij", of_scale, 2 * weights, of_scale
        )
    probs, of_logits = distribution.probs.detach(), rows_of(distribution.logits, parameters)
    metric = th.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    return th.einsum("soi,sop,spj->sij", of_logits, metric, of_logits)


def explicit_scores(policy: Any, observations: th.Tensor, actions: th.Tensor, parameters: list[nn.Parameter]) -> th.Tensor:
    return rows_of(action_distribution(policy, observations).log_prob(actions)[:, None], parameters)[:, 0]


def actor_of(policy: Any, observations: th.Tensor) -> list[nn.Parameter]:
    distribution = action_distribution(policy, observations)
    return actor_gradient(policy, distribution.log_prob(distribution.mode()).mean())[0]


def taken(policy: Any, observations: th.Tensor) -> th.Tensor:
    with th.no_grad():
        return action_distribution(policy, observations).sample()


def product_of_all(product: Callable[[th.Tensor], th.Tensor], vectors: th.Tensor) -> th.Tensor:
    return th.stack([product(vector).clone() for vector in vectors])


def assert_close_in_norm(found: th.Tensor, expected: th.Tensor, rtol: float) -> None:
    """Vectors along the last dimension, whose errors are small beside the longest."""
    errors, lengths = (th.linalg.vector_norm(tensor, dim=-1) for tensor in (found - expected, expected))
    assert found.shape == expected.shape
    assert (lengths > 0).all()
    assert errors.max() <= rtol * lengths.max(), errors / lengths.max()


def assert_products_are_explicit(policy: Any, rtol: float) -> None:
    """Of all three: the Fisher matrix, the empirical one, and the curvature of each state."""
    observations = th.randn(STATES, 3, 4)
    parameters = actor_of(policy, observations)
    matrices = explicit_matrices(policy, observations, parameters)
    assert matrices.abs().amax() > 1e-2
    actions = taken(policy, observations)
    scores = explicit_scores(policy, observations, actions, parameters)
    dimensions = 3 if isinstance(policy.action_space, spaces.Box) else 1
    vectors = th.randn(5, matrices.shape[1], dtype=matrices.dtype)

    found = product_of_all(fisher_vector_product(policy, observations, parameters), vectors)
    assert_close_in_norm(found, vectors @ matrices.mean(0), rtol)

    found = product_of_all(empirical_fisher_vector_product(policy, observations, actions, parameters), vectors)
    assert_close_in_norm(found, vectors @ (scores.T @ scores) / STATES / dimensions, rtol)

    for vector in vectors:
        curvature = kl_curvature(policy, observations, parameters, vector)
        expected = th.einsum("i,sij,j->s", vector, matrices, vector)
        assert_close_in_norm(curvature, expected, rtol)


@pytest.mark.parametrize("space", ["box", "discrete"])
@pytest.mark.parametrize("module", MODULES)
def test_products_of_every_module_are_those_of_the_explicit_matrix(
    module: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_trpo_plus.policies.fisher.CHUNK", 4)
    make_module, by_differences = MODULES[module]
    assert_products_are_explicit(policy_with(make_module, space), 1e-8 if by_differences else 1e-11)


@pytest.mark.parametrize("module", MODULES)
def test_products_of_every_module_in_single_precision(module: str) -> None:
    make_module, by_differences = MODULES[module]
    assert_products_are_explicit(policy_with(make_module, double=False), 1e-3 if by_differences else 2e-5)


@pytest.mark.parametrize("module", MODULES)
def test_products_leave_the_policy_as_it_is(module: str) -> None:
    """Its outputs, its parameters and their places, and whatever a layer keeps that is computed from them."""
    policy = policy_with(MODULES[module][0])
    observations = th.randn(STATES, 3, 4)
    parameters = actor_of(policy, observations)
    actions, named = taken(policy, observations), dict(policy.named_parameters())
    state = {name: value.clone() for name, value in policy.state_dict().items()}
    with th.no_grad():
        before = action_distribution(policy, observations).log_prob(actions)
    vector = th.randn(sum(p.numel() for p in parameters), dtype=th.float64)
    fisher_vector_product(policy, observations, parameters)(vector)
    empirical_fisher_vector_product(policy, observations, actions, parameters)(vector)
    kl_curvature(policy, observations, parameters, vector)
    assert all(parameter is named[name] for name, parameter in policy.named_parameters())
    assert all(isinstance(parameter, nn.Parameter) and parameter.grad is None for parameter in parameters)
    assert all(th.equal(value, state[name]) for name, value in policy.state_dict().items())
    with th.no_grad():
        assert th.equal(action_distribution(policy, observations).log_prob(actions), before)
    assert actor_gradient(policy, action_distribution(policy, observations).log_prob(actions).mean())[1].abs().max() > 0


@pytest.mark.parametrize("net_arch", [[], [5]])
def test_products_of_gsde_whose_variance_is_learned(net_arch: list[int]) -> None:
    extractor = {"features_extractor_class": DoubleExtractor, "net_arch": net_arch}
    model = TRPO("MlpPolicy", random_env(), n_steps=32, seed=0, use_sde=True, policy_kwargs=extractor)
    policy = model.policy.double()
    policy.reset_noise()
    policy.action_dist.learn_features = True
    observations = th.randn(STATES, 4)
    parameters = actor_of(policy, observations)
    matrices = explicit_matrices(policy, observations, parameters)
    identity = th.eye(matrices.shape[1], dtype=th.float64)
    found = product_of_all(fisher_vector_product(policy, observations, parameters), identity)
    th.testing.assert_close(found, matrices.mean(0), rtol=1e-8, atol=1e-10)
    actions = taken(policy, observations)
    scores = explicit_scores(policy, observations, actions, parameters)
    found = product_of_all(empirical_fisher_vector_product(policy, observations, actions, parameters), identity)
    th.testing.assert_close(found, scores.T @ scores / STATES / 3, rtol=1e-8, atol=1e-10)
    vector = th.randn(len(identity), dtype=th.float64)
    expected = th.einsum("i,sij,j->s", vector, matrices, vector)
    th.testing.assert_close(kl_curvature(policy, observations, parameters, vector), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_empirical_product_of_every_sb3_distribution_is_the_second_moment_of_the_scores(name: str) -> None:
    policy = make(name, policy_kwargs={"features_extractor_class": DoubleExtractor}).policy.double()
    if policy.use_sde:
        policy.reset_noise()
    observations = th.randn(10, 4)
    parameters = actor_of(policy, observations)
    actions = taken(policy, observations)
    scores = explicit_scores(policy, observations, actions, parameters)
    dimensions = {"box": 3, "multi_binary": 3}.get(DISTRIBUTIONS[name][0], 1)
    found = product_of_all(
        empirical_fisher_vector_product(policy, observations, actions, parameters), th.eye(scores.shape[1], dtype=th.float64)
    )
    th.testing.assert_close(found, scores.T @ scores / 10 / dimensions, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "module", ["transformer", "conv", "weight norm", "function", "once differentiable", "by NumPy", "distances"]
)
def test_products_of_a_family_without_a_metric_are_the_hessian_of_its_kl(module: str) -> None:
    """Explicitly: second differences of the KL in each state, along pairs of vectors; it knows no derivative at all."""
    make_module, _ = MODULES[module]
    extractor = {"features_extractor_class": OfSequences, "features_extractor_kwargs": {"make": make_module}}
    th.manual_seed(0)
    env = random_env("box", spaces.Box(-1.0, 1.0, (3, 4)))
    policy = TRPO(BetaPolicy, env, n_steps=32, seed=0, policy_kwargs={**extractor, "net_arch": []}).policy.double()
    with th.no_grad():
        policy.action_net.weight.normal_()
    policy.set_training_mode(False)
    observations = th.randn(STATES, 3, 4)
    parameters = actor_of(policy, observations)
    flat = nn.utils.parameters_to_vector(parameters).detach()
    with th.no_grad():
        old = action_distribution(policy, observations).distribution

    @th.no_grad()
    def kl(step: th.Tensor) -> th.Tensor:
        with parameters_at(parameters, unflatten(flat + step, parameters)):
            return td.kl_divergence(old, action_distribution(policy, observations).distribution).mean(1)

    def second_difference(one: th.Tensor, other: th.Tensor, size: float = 1e-3) -> th.Tensor:
        signs = [(i, j) for i in (1, -1) for j in (1, -1)]
        return sum((i * j * kl(size * (i * one + j * other)) for i, j in signs), th.zeros(())) / (4 * size**2)

    product = fisher_vector_product(policy, observations, parameters)
    directions = nn.functional.normalize(th.randn(4, len(flat), dtype=th.float64))
    for vector in directions:
        expected = th.stack([second_difference(vector, other).mean() for other in directions])
        assert expected.abs().max() > 1e-3
        th.testing.assert_close(directions @ product(vector), expected, rtol=1e-3, atol=1e-5)
        curvature = kl_curvature(policy, observations, parameters, vector)
        th.testing.assert_close(curvature, second_difference(vector, vector), rtol=1e-3, atol=1e-5)


class Failing(nn.Module):
    """Runs out of memory once it has been told to."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.fails = inner, False

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        if self.fails:
            raise RuntimeError("out of memory")
        return self.inner(inputs)


@pytest.mark.parametrize("module", ["conv", "once differentiable", "by NumPy", "function after conv"])
def test_error_of_the_users_module_in_a_product_is_not_swallowed(module: str) -> None:
    """Where it is passed through again: in forward mode, or by finite differences."""
    policy = policy_with(lambda: Failing(MODULES[module][0]()))
    observations = th.randn(STATES, 3, 4)
    parameters = actor_of(policy, observations)
    named, pointers = dict(policy.named_parameters()), [p.data_ptr() for p in parameters]
    vector = th.ones(sum(p.numel() for p in parameters), dtype=th.float64)
    product = fisher_vector_product(policy, observations, parameters)
    for fails_from_the_start in (True, False):
        policy.features_extractor.network.fails = fails_from_the_start
        if not fails_from_the_start:
            before = product(vector).clone()
            policy.features_extractor.network.fails = True
        with pytest.raises(RuntimeError, match="out of memory"):
            product(vector)
        assert all(parameter is named[name] for name, parameter in policy.named_parameters())
        assert [p.data_ptr() for p in parameters] == pointers
    policy.features_extractor.network.fails = False
    th.testing.assert_close(product(vector), before)


@pytest.mark.parametrize("module", ["conv", "attention with weights", "function", "by NumPy after conv"])
@pytest.mark.parametrize("fisher", ["gauss_newton", "empirical"])
def test_steps_with_every_way_to_the_jacobian_keep_to_the_trust_region(fisher: str, module: str) -> None:
    env = random_env("box", spaces.Box(-1.0, 1.0, (3, 4)))
    extractor = {"features_extractor_class": OfSequences, "features_extractor_kwargs": {"make": MODULES[module][0]}}
    kwargs = {"n_steps": 128, "batch_size": 64, "n_critic_updates": 1, "seed": 0, "fisher": fisher, "cg_damping": 1e-3}
    model = TRPO("MlpPolicy", env, policy_kwargs={**extractor, "net_arch": [4]}, **kwargs)
    collect(model).train()
    assert model.last_step is not None
    assert model.last_step.accepted
    assert 0.2 * model.target_kl < model.last_step.mean_kl <= model.target_kl
