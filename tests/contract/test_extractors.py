"""Features extractors: layers of every kind are collected with, differentiated and learned; the trust region holds them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_trpo_plus import TRPO, VineTRPO
from tests.contract.programs import (
    NO_CRITIC,
    NOT_DIRECTION,
    Algorithm,
    Raises,
    assert_same_direction,
    contract,
    direction,
    envs,
    learn,
    make,
    moved,
    of_actor,
    rollout,
)


class Of(BaseFeaturesExtractor):
    """Features of a module that is made for observations of shape (2, 6)."""

    def __init__(self, space: Any, make_module: Callable[[], nn.Module]) -> None:
        super().__init__(space, features_dim=6)
        self.module = make_module()

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.module(observations)


class Recurrent(nn.Module):
    def __init__(self, cell: type[Any]) -> None:
        super().__init__()
        self.cell = cell(6, 6, batch_first=True)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return self.cell(inputs)[0][:, -1]


class ConvAndRecurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.cell = nn.Conv1d(2, 3, 3, padding=1), nn.LSTM(6, 6, batch_first=True)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return self.cell(th.relu(self.conv(inputs)))[0][:, -1]


class Attention(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.need_weights, self.attention = need_weights, nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return self.attention(inputs, inputs, inputs, need_weights=self.need_weights)[0].mean(dim=1)


class Scaling(nn.Module):
    """Attention by torch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return nn.functional.scaled_dot_product_attention(self.queries(inputs), self.keys(inputs), inputs).mean(dim=1)


class Transformer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return self.encoder(inputs).mean(dim=1)


class Cube(th.autograd.Function):
    """A user's function, with a backward pass alone."""

    @staticmethod
    def forward(ctx: Any, inputs: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(inputs)
        return inputs**3

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:  # type: ignore[override]
        (inputs,) = ctx.saved_tensors
        return 3 * inputs**2 * gradient


class Function(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 6)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return Cube.apply(th.tanh(self.linear(inputs.flatten(1))))


class Grid(nn.Module):
    """Samples the observation at places that a layer chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Linear(12, 12)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        places = th.tanh(self.places(inputs.flatten(1))).view(-1, 1, 6, 2)
        return nn.functional.grid_sample(inputs[:, None], places, align_corners=False).flatten(1)


def flat(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), *modules)


def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), norm(nn.Linear(12, 6)), nn.Tanh())


EXTRACTORS: dict[str, Callable[[], nn.Module]] = {
    "linear": flat,
    "layer norm": lambda: flat(nn.LayerNorm(6)),
    "group norm": lambda: flat(nn.GroupNorm(2, 6), nn.ReLU()),
    "relu in place": lambda: flat(nn.ReLU(inplace=True)),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "convolution": lambda: nn.Sequential(nn.Conv1d(2, 1, 3, padding=1), nn.ReLU(), nn.Flatten()),
    "convolution and lstm": ConvAndRecurrent,
    "attention with weights": lambda: Attention(True),
    "transposed convolution": lambda: nn.Sequential(nn.ConvTranspose1d(2, 1, 3, padding=1), nn.Flatten()),
    "weight_norm": lambda: normed(nn.utils.weight_norm),
    "parametrized weight_norm": lambda: normed(nn.utils.parametrizations.weight_norm),
    "orthogonal": lambda: normed(nn.utils.parametrizations.orthogonal),
    "autograd function": Function,
    "embedding of signs": lambda: Embedded(),
    "grid_sample": lambda: Grid(),
    "scaled dot product": lambda: Scaling(),
}
# A convolution makes the library take its products in chunks.
EXTRACTORS |= {
    f"{name} after a convolution": lambda name=name: nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), EXTRACTORS[name]())
    for name in ("gru", "attention with weights", "weight_norm", "autograd function", "grid_sample", "scaled dot product")
}
# sb3-contrib differentiates its update's policy in training mode, ours is that which collected the rollout.
RANDOM_IN_TRAINING: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: flat(nn.Dropout(0.3)),
    "alpha dropout": lambda: flat(nn.SELU(), nn.AlphaDropout(0.2)),
    "batch norm": lambda: flat(nn.BatchNorm1d(6)),
    "batch norm without parameters": lambda: flat(nn.BatchNorm1d(6, affine=False)),
    "spectral norm": lambda: normed(nn.utils.parametrizations.spectral_norm),
    "transformer with dropout": lambda: Transformer(0.1),
}
# Those with no second derivative in torch.
ONCE: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: Attention(False),
    "transformer": lambda: Transformer(0.0),
}


class Embedded(nn.Module):
    """A table that is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 3)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return self.table((inputs[:, :, 0] > 0).long()).flatten(1)


def with_extractor(algorithm: Algorithm, make_module: Callable[[], nn.Module], **kwargs: Any) -> Any:
    of_policy = {key: kwargs.pop(key) for key in ("share_features_extractor",) if key in kwargs}
    options = {"net_arch": [4], "features_extractor_class": Of, "features_extractor_kwargs": {"make_module": make_module}}
    env = envs(observation_space=spaces.Box(-2.0, 2.0, (2, 6)))
    return make(algorithm, env, policy_kwargs={**options, **of_policy}, **kwargs)


@pytest.mark.parametrize("name", [*EXTRACTORS, *RANDOM_IN_TRAINING, *ONCE])
@contract()
def test_extractor_is_collected_with(algorithm: Algorithm, name: str) -> Any:
    """Layers of any kind in a features extractor: same seed, same rollout."""
    module = {**EXTRACTORS, **RANDOM_IN_TRAINING, **ONCE}[name]
    return rollout(with_extractor(algorithm, module))


@pytest.mark.parametrize("name", EXTRACTORS)
@contract(without=NOT_DIRECTION, compare=assert_same_direction)
def test_extractor_has_the_same_step(algorithm: Algorithm, name: str) -> Any:
    """The direction of the update's step through layers of any kind."""
    return direction(with_extractor(algorithm, EXTRACTORS[name], n_critic_updates=0))


@pytest.mark.parametrize("name", [*EXTRACTORS, *RANDOM_IN_TRAINING])
@contract()
def test_extractor_is_learned(algorithm: Algorithm, name: str) -> Any:
    """The update moves the extractor, the policy's layers and log_std."""
    module = {**EXTRACTORS, **RANDOM_IN_TRAINING}[name]
    return of_actor(moved(with_extractor(algorithm, module)))


@pytest.mark.parametrize("name", EXTRACTORS)
@pytest.mark.parametrize("option", [{"kl_constraint": "max"}, {"fisher": "empirical"}], ids=["maximum KL", "empirical"])
def test_extractor_is_learned_with_options(name: str, option: dict[str, Any]) -> None:
    """The same with what sb3-contrib has not."""
    moves = of_actor(moved(with_extractor(TRPO, EXTRACTORS[name], **option)))
    assert all(moves.values()), moves


@pytest.mark.parametrize("name", ONCE)
@contract(documented=True, contrib=Raises(RuntimeError, "derivative"))
def test_extractor_without_second_derivative_is_learned(algorithm: Algorithm, name: str) -> Any:
    """What can be differentiated once can be learned; sb3-contrib differentiates twice, which torch can not here."""
    moves = of_actor(moved(with_extractor(algorithm, ONCE[name])))
    return any(moves[name] for name in moves if "module" in name)


@pytest.mark.parametrize("share", [True, False])
@contract()
def test_shared_and_unshared_extractors(algorithm: Algorithm, share: bool) -> Any:
    """``share_features_extractor``: the critic's own extractor is the critic's, a shared one the actor's."""
    kwargs: dict[str, Any] = {"bootstrap": True} if issubclass(algorithm, VineTRPO) else {}
    return moved(with_extractor(algorithm, EXTRACTORS["linear"], share_features_extractor=share, **kwargs))


@contract(without={VineTRPO: NO_CRITIC})
def test_critics_fit_leaves_a_shared_extractor(algorithm: Algorithm) -> Any:
    """The policy after the update is the same after many passes of the critic's fit as after few."""
    return _depends_on_the_critic(algorithm, EXTRACTORS["linear"])


@pytest.mark.parametrize("name", ["batch norm", "batch norm without parameters"])
@contract(without={VineTRPO: NO_CRITIC}, documented=False, contrib=True)
def test_critics_fit_leaves_batch_norm(algorithm: Algorithm, name: str) -> Any:
    """The same where the shared extractor has running statistics; sb3-contrib moves them with each minibatch."""
    return _depends_on_the_critic(algorithm, RANDOM_IN_TRAINING[name])


@contract(without={VineTRPO: NO_CRITIC}, documented=False, contrib=Raises(RuntimeError, "does not require grad"))
def test_critics_fit_leaves_frozen_batch_norm(algorithm: Algorithm) -> Any:
    """The same where its weight and bias are frozen, which sb3-contrib does not take."""

    def frozen() -> nn.Module:
        module = flat(nn.BatchNorm1d(6))
        module[2].requires_grad_(False)
        return module

    return _depends_on_the_critic(algorithm, frozen)


def _depends_on_the_critic(algorithm: Algorithm, module: Callable[[], nn.Module]) -> bool:
    modes = []
    for n_critic_updates in (1, 20):
        model = with_extractor(algorithm, module, n_critic_updates=n_critic_updates)
        learn(model)
        observations = np.random.default_rng(0).normal(size=(30, 2, 6)).astype(np.float32)
        modes.append(model.predict(observations, deterministic=True)[0])
    return not np.allclose(modes[0], modes[1], atol=1e-6)
