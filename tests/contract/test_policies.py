"""Policies: networks of any kind are collected with, differentiated twice and learned, and what is overridden is called."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    SquashedDiagGaussianDistribution,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO
from tests.conftest import DoubleExtractor
from tests.contract.programs import (
    FAMILY,
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


def small(**kwargs: Any) -> dict[str, Any]:
    return {"policy_kwargs": {"net_arch": [8], **kwargs}}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "no hidden layer": small(net_arch=[]),
    "three layers": small(net_arch=[8, 6, 4]),
    "actor and critic differ": small(net_arch={"pi": [6], "vf": [9, 5]}),
    "actor without hidden layer": small(net_arch={"pi": [], "vf": [8]}),
    "critic without hidden layer": small(net_arch={"pi": [8], "vf": []}),
    "relu": small(activation_fn=nn.ReLU),
    "relu in place": small(activation_fn=partial(nn.ReLU, inplace=True)),
    "relu in place, two layers": small(net_arch=[8, 8], activation_fn=partial(nn.ReLU, inplace=True)),
    "elu in place": small(activation_fn=partial(nn.ELU, inplace=True)),
    "silu in place": small(activation_fn=partial(nn.SiLU, inplace=True)),
    "leaky relu in place": small(activation_fn=partial(nn.LeakyReLU, 0.3, inplace=True)),
    "prelu": small(activation_fn=nn.PReLU),
    "softmax": small(activation_fn=partial(nn.Softmax, dim=-1)),
    "rrelu": small(activation_fn=nn.RReLU),
    "not orthogonal": small(ortho_init=False),
    "log_std_init": small(log_std_init=-1.5),
    "unshared extractor": small(share_features_extractor=False),
}
# In training mode, in which sb3-contrib takes its step and the critic is fitted.
RANDOM = {"rrelu"}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd with momentum": {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}},
    "rmsprop": {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {"alpha": 0.9}},
    "adamw": {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}},
    "adam with weight decay": {"optimizer_kwargs": {"weight_decay": 0.1}},
    "adam with amsgrad": {"optimizer_kwargs": {"amsgrad": True}},
    "adam with betas": {"optimizer_kwargs": {"betas": (0.5, 0.7), "eps": 1e-3}},
    "adam that maximises": {"optimizer_kwargs": {"maximize": True}},
    "adamax": {"optimizer_class": th.optim.Adamax},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@contract()
def test_architecture_is_collected_with(algorithm: Algorithm, name: str) -> Any:
    """``net_arch``, ``activation_fn``, ``ortho_init``, ``log_std_init``: same seed, same rollout."""
    return rollout(make(algorithm, **copy.deepcopy(ARCHITECTURES[name])))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in RANDOM])
@contract(without=NOT_DIRECTION, compare=assert_same_direction)
def test_architecture_has_the_same_step(algorithm: Algorithm, name: str) -> Any:
    """The direction of the update's step, on the same rollout."""
    return direction(make(algorithm, n_critic_updates=0, **copy.deepcopy(ARCHITECTURES[name])))


@pytest.mark.parametrize("name", [name for name in (*ARCHITECTURES, *OPTIMIZERS) if name not in RANDOM])
@contract(without={VineTRPO: NO_CRITIC, PPOPenalty: "its updates draw other minibatches before the critic's"})
def test_critic_is_fitted_alike(algorithm: Algorithm, name: str) -> Any:
    """The critic after the update, on the same rollout: values of the same observations."""
    options = copy.deepcopy(ARCHITECTURES.get(name) or small(**OPTIMIZERS[name]))
    model = make(algorithm, learning_rate=0.01, **options)
    learn(model)
    observations = th.as_tensor(np.random.default_rng(0).normal(size=(20, 4)), dtype=th.float32)
    with th.no_grad():
        return model.policy.predict_values(observations).round(decimals=3)


class Mlp(nn.Module):
    """A network that is no Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        hidden = th.tanh(self.first(inputs))
        return hidden + th.tanh(self.second(hidden))


def _replaced(policy: Any, name: str, module: nn.Module) -> None:
    setattr(policy.mlp_extractor, name, module)


def _residual(policy: Any) -> None:
    th.manual_seed(1)
    _replaced(policy, "policy_net", Mlp())


def _residual_critic(policy: Any) -> None:
    th.manual_seed(1)
    _replaced(policy, "value_net", Mlp())


def _compiled(policy: Any) -> None:
    policy.mlp_extractor.policy_net = th.compile(policy.mlp_extractor.policy_net, backend="eager")


def _compiled_critic(policy: Any) -> None:
    policy.mlp_extractor.value_net = th.compile(policy.mlp_extractor.value_net, backend="eager")


def _compiled_in_place(policy: Any) -> None:
    policy.mlp_extractor.policy_net.compile(backend="eager")


def _linear(policy: Any) -> None:
    _replaced(policy, "policy_net", nn.Linear(4, 8))


class Scaled(nn.Linear):
    """A Linear that is not one."""

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return 3 * super().forward(inputs)


def _subclassed_linear(policy: Any) -> None:
    th.manual_seed(1)
    policy.action_net = Scaled(8, 3)


def _subclassed_sequential(policy: Any) -> None:
    class Doubling(nn.Sequential):
        def forward(self, inputs: th.Tensor) -> th.Tensor:
            return 2 * super().forward(inputs)

    policy.mlp_extractor.policy_net = Doubling(*policy.mlp_extractor.policy_net)


def _nested_sequential(policy: Any) -> None:
    policy.mlp_extractor.policy_net = nn.Sequential(policy.mlp_extractor.policy_net, nn.Sequential(nn.Linear(8, 8), nn.ReLU()))


def _without_bias(policy: Any) -> None:
    policy.action_net = nn.Linear(8, 3, bias=False)


def _tied(policy: Any) -> None:
    policy.mlp_extractor.value_net = policy.mlp_extractor.policy_net


def _two_linears(policy: Any) -> None:
    policy.mlp_extractor.policy_net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))


def _twice(policy: Any) -> None:
    layer = nn.Linear(8, 8)
    policy.mlp_extractor.policy_net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), layer, nn.Tanh(), layer)


def _patch(module_of: Callable[[Any], Any], method: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Another method on one instance, which changes what the class's returns."""

    def patch(policy: Any) -> None:
        owner = module_of(policy)
        original = getattr(owner, method)
        setattr(owner, method, lambda *args, **kwargs: change(original(*args, **kwargs)))

    return patch


def _double(output: Any) -> Any:
    return 2 * output


SURGERY: dict[str, Callable[[Any], None]] = {
    "policy_net is a module": _residual,
    "value_net is a module": _residual_critic,
    "policy_net is a linear layer": _linear,
    "policy_net is compiled": _compiled,
    "policy_net is compiled in place": _compiled_in_place,
    "value_net is compiled": _compiled_critic,
    "action_net is a subclass": _subclassed_linear,
    "policy_net is a subclass": _subclassed_sequential,
    "nested sequential": _nested_sequential,
    "no bias": _without_bias,
    "actor and critic share their network": _tied,
    "two linear layers in a row": _two_linears,
    "a layer used twice": _twice,
    "forward of a layer": _patch(lambda policy: policy.mlp_extractor.policy_net[0], "forward", _double),
    "forward of an activation": _patch(lambda policy: policy.mlp_extractor.policy_net[1], "forward", _double),
    "forward of policy_net": _patch(lambda policy: policy.mlp_extractor.policy_net, "forward", _double),
    "forward of action_net": _patch(lambda policy: policy.action_net, "forward", _double),
    "forward of value_net": _patch(lambda policy: policy.value_net, "forward", _double),
    "forward of the critic's layer": _patch(lambda policy: policy.mlp_extractor.value_net[0], "forward", _double),
    "forward of the extractor": _patch(lambda policy: policy.features_extractor, "forward", _double),
    "forward of mlp_extractor": _patch(lambda it: it.mlp_extractor, "forward", lambda out: (2 * out[0], out[1])),
    "forward_actor of mlp_extractor": _patch(lambda policy: policy.mlp_extractor, "forward_actor", _double),
    "forward_critic of mlp_extractor": _patch(lambda policy: policy.mlp_extractor, "forward_critic", _double),
    "proba_distribution": lambda policy: _tempered(policy.action_dist),
    "sample": _patch(lambda policy: policy.action_dist, "sample", lambda action: action * 0.5),
    "get_actions": _patch(lambda policy: policy.action_dist, "get_actions", lambda action: action * 0.5),
    "log_prob": _patch(lambda policy: policy.action_dist, "log_prob", lambda log_prob: log_prob - 1.0),
    "extract_features": _patch(lambda policy: policy, "extract_features", _double),
    "predict_values": _patch(lambda policy: policy, "predict_values", _double),
    "get_distribution": _patch(lambda policy: policy, "get_distribution", lambda distribution: distribution),
    "forward of the policy": _patch(lambda it: it, "forward", lambda out: (0.5 * out[0], out[1] + 1, out[2])),
}


def _tempered(distribution: Any) -> None:
    original = distribution.proba_distribution
    distribution.proba_distribution = lambda mean, log_std: original(mean, log_std - 1.0)


def operated(algorithm: Algorithm, name: str, **kwargs: Any) -> Any:
    model = make(algorithm, policy_kwargs={"net_arch": [8]}, **kwargs)
    th.manual_seed(7)
    SURGERY[name](model.policy)
    # New modules have parameters that the optimiser does not know.
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=1e-3)
    th.manual_seed(8)
    return model


@pytest.mark.parametrize("name", SURGERY)
@contract()
def test_changed_policy_is_collected_with(algorithm: Algorithm, name: str) -> Any:
    """A module replaced, or a method patched on one instance of a module: the rollout is SB3's."""
    return rollout(operated(algorithm, name))


@pytest.mark.parametrize("name", SURGERY)
@contract()
def test_changed_policy_is_learned(algorithm: Algorithm, name: str) -> Any:
    """The update moves the policy's layers with a module replaced or a method patched."""
    return of_actor(moved(operated(algorithm, name)))


@pytest.mark.parametrize("name", [name for name in SURGERY if name != "forward of the policy"])
@contract(without=NOT_DIRECTION, compare=assert_same_direction)
def test_changed_policy_has_the_same_step(algorithm: Algorithm, name: str) -> Any:
    """The direction of the update's step with a module replaced or a method patched."""
    return direction(operated(algorithm, name, n_critic_updates=0))


class Forward(ActorCriticPolicy):
    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, values + 7, log_prob


class EvaluateActions(ActorCriticPolicy):
    def evaluate_actions(self, obs: Any, actions: Any) -> Any:
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        return values + 7, log_prob, entropy


class GetDistribution(ActorCriticPolicy):
    def get_distribution(self, obs: Any) -> Any:
        distribution = super().get_distribution(obs)
        inner = distribution.distribution
        return DiagGaussianDistribution(3).proba_distribution(inner.mean + 0.1, inner.stddev.log())


class FromLatent(ActorCriticPolicy):
    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        return self.action_dist.proba_distribution(th.tanh(self.action_net(latent_pi)), self.log_std - 0.5)


class PredictValues(ActorCriticPolicy):
    def predict_values(self, obs: Any) -> th.Tensor:
        return super().predict_values(obs) + 7


class ExtractFeatures(ActorCriticPolicy):
    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        return super().extract_features(obs / 2, features_extractor)


class BuildsItsOwn(ActorCriticPolicy):
    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        self.mlp_extractor.policy_net.append(nn.Linear(8, 8))


class Extractor(nn.Module):
    latent_dim_pi, latent_dim_vf = 8, 5

    def __init__(self) -> None:
        super().__init__()
        self.policy_net = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.value_net = nn.Sequential(nn.Linear(4, 5), nn.ReLU())

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return self.policy_net(features)

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return self.value_net(features)


class Documented(ActorCriticPolicy):
    """The advanced example of SB3's documentation."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = Extractor()


class Tempered(ActorCriticPolicy):
    """A distribution of the user's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.action_dist = TemperedGaussian(3)


class TemperedGaussian(DiagGaussianDistribution):
    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> Any:
        return super().proba_distribution(mean_actions * 0.5, log_std - 0.7)


class Squashed(ActorCriticPolicy):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.action_dist = SquashedDiagGaussianDistribution(3)


class StdOfTheState(ActorCriticPolicy):
    """Standard deviations that a layer makes."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.std_net = nn.Linear(8, 3)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        return self.action_dist.proba_distribution(self.action_net(latent_pi), th.tanh(self.std_net(latent_pi)))


SUBCLASSES = (
    Forward, EvaluateActions, GetDistribution, FromLatent, PredictValues, ExtractFeatures, BuildsItsOwn, Documented, Tempered,
    StdOfTheState,
)  # fmt: skip


@pytest.mark.parametrize("policy", SUBCLASSES)
@contract()
def test_subclass_is_collected_with(algorithm: Algorithm, policy: type[ActorCriticPolicy]) -> Any:
    """What a subclass overrides is what SB3 would call."""
    return rollout(make(algorithm, policy=policy))


@pytest.mark.parametrize("policy", SUBCLASSES)
@contract(without=NOT_DIRECTION, compare=assert_same_direction)
def test_subclass_has_the_same_step(algorithm: Algorithm, policy: type[ActorCriticPolicy]) -> Any:
    """The direction of the update's step with what a subclass overrides."""
    return direction(make(algorithm, policy=policy, n_critic_updates=0))


@contract()
def test_squashed_gaussian(algorithm: Algorithm) -> Any:
    """``SquashedDiagGaussianDistribution`` in a subclass is collected with and learned."""
    model = make(algorithm, policy=Squashed)
    found = rollout(model)
    return found["actions"], of_actor(moved(model))


class TemperedCategorical(CategoricalDistribution):
    def proba_distribution(self, action_logits: th.Tensor) -> Any:
        return super().proba_distribution(action_logits / 2)


class Softened(ActorCriticPolicy):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.action_dist = TemperedCategorical(4)


@contract(without=NOT_DIRECTION, compare=assert_same_direction)
def test_own_categorical_has_the_same_step(algorithm: Algorithm) -> Any:
    """A distribution over Discrete actions of the user's."""
    return direction(make(algorithm, envs("discrete"), Softened, n_critic_updates=0))


@contract(documented=(False, False, True), contrib=Raises(RuntimeError, "does not require grad"))
def test_frozen_layers_stay(algorithm: Algorithm) -> Any:
    """``requires_grad_(False)`` on a layer and on log_std: they stay as they are, others move; sb3-contrib refuses them."""
    model = make(algorithm, policy_kwargs={"net_arch": [8, 8]})
    model.policy.mlp_extractor.policy_net[0].requires_grad_(False)
    model.policy.log_std.requires_grad_(False)
    moves = moved(model)
    return moves["mlp_extractor.policy_net.0.weight"], moves["log_std"], moves["action_net.weight"]


@contract(without={VineTRPO: NO_CRITIC})
def test_frozen_critic_stays(algorithm: Algorithm) -> Any:
    """``requires_grad_(False)`` on a layer of the critic."""
    model = make(algorithm)
    model.policy.mlp_extractor.value_net.requires_grad_(False)
    return moved(model)


@contract()
def test_policy_in_double_precision(algorithm: Algorithm) -> Any:
    """A policy in float64 is collected with and stays in float64."""
    model = make(algorithm, policy_kwargs={"net_arch": [8], "features_extractor_class": DoubleExtractor})
    model.policy.double()
    found = rollout(model)
    learn(model)
    return found, {str(p.dtype) for p in model.policy.parameters()}


@contract(without=NOT_DIRECTION, compare=assert_same_direction)
def test_policy_in_double_precision_has_the_same_step(algorithm: Algorithm) -> Any:
    """The direction of the update's step in float64."""
    options = {"net_arch": [8], "features_extractor_class": DoubleExtractor}
    model = make(algorithm, policy_kwargs=options, n_critic_updates=0)
    model.policy.double()
    return direction(model)


@contract()
def test_own_flatten_extractor(algorithm: Algorithm) -> Any:
    """A subclass of ``FlattenExtractor`` that computes."""

    class Squares(FlattenExtractor):
        def forward(self, observations: th.Tensor) -> th.Tensor:
            return super().forward(observations) ** 2

    return rollout(make(algorithm, policy_kwargs={"net_arch": [8], "features_extractor_class": Squares}))


@contract()
def test_policy_by_name_and_by_class(algorithm: Algorithm) -> Any:
    """``"MlpPolicy"``, the class, and the aliases that the algorithm has."""
    aliases = {name: policy.__name__ for name, policy in algorithm.policy_aliases.items()}
    return aliases, type(make(algorithm, policy=ActorCriticPolicy).policy).__name__


@contract()
def test_whole_policy_is_compiled(algorithm: Algorithm) -> Any:
    """``model.policy = torch.compile(model.policy)``: collected with, learned, and saved under the policy's own names."""
    model = make(algorithm)
    model.policy = th.compile(model.policy, backend="eager")
    found = rollout(model)
    learn(model)
    return found, sorted(model.get_parameters()["policy"])


@contract()
def test_unknown_policy_is_refused(algorithm: Algorithm) -> Any:
    """A policy that has no such name."""
    with pytest.raises(ValueError, match="Policy NoPolicy unknown"):
        make(algorithm, policy="NoPolicy")
    return True


@pytest.mark.parametrize("at_call", [2, 3])
@contract()
def test_errors_of_the_users_network_are_raised(algorithm: Algorithm, at_call: int) -> Any:
    """A RuntimeError that a layer raises in the middle of an update comes out, whoever called the layer."""
    calls: list[int] = []

    class Fails(nn.Module):
        def forward(self, inputs: th.Tensor) -> th.Tensor:
            if th.is_grad_enabled() or len(inputs) > 2:
                calls.append(1)
                if len(calls) >= at_call:
                    raise RuntimeError("the user's own mistake")
            return inputs

    # Between the layers of the actor alone, so that all its calls are of the policy's update.
    model = make(algorithm)
    model.policy.mlp_extractor.policy_net.append(Fails())
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        learn(model)
    return len(calls) == at_call


class Counted(gym.Env[Any, Any]):
    """An environment whose observations become NaN, and which counts what it is given."""

    observation_space = spaces.Box(-2.0, 2.0, (4,))
    action_space = spaces.Box(-1.0, 1.0, (3,))
    steps_with_nan = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(4, dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        type(self).steps_with_nan += int(not np.isfinite(action).all())
        observation = np.full(4, np.nan if self.steps >= 5 else 0.5, dtype=np.float32)
        return observation, 1.0, False, False, {}


@pytest.mark.parametrize("policy", ["MlpPolicy", Forward])
@contract()
def test_nan_observation_stops_at_its_step(algorithm: Algorithm, policy: Any) -> Any:
    """An observation that is not a number raises a ValueError at that step; no action that is none reaches the environment."""
    with validation(True):
        return _stopped_by_nan(algorithm, policy)


@pytest.mark.parametrize("policy", ["MlpPolicy", Forward])
@contract(documented=(0, 5, True), contrib=Raises(AssertionError, "did not raise"))
def test_nan_observation_stops_at_its_step_unvalidated(algorithm: Algorithm, policy: Any) -> Any:
    """The same where torch's distributions look at nothing, as once ``torch.compile`` was used; sb3-contrib then goes on."""
    with validation(False):
        return _stopped_by_nan(algorithm, policy)


def _stopped_by_nan(algorithm: Algorithm, policy: Any) -> Any:
    class Fresh(Counted):
        pass

    steps: list[int] = []
    model = make(algorithm, make_vec_env(Fresh, 2, seed=0), policy)
    try:
        learn(model, step=lambda callback: steps.append(callback.step))
    except ValueError as error:
        return Fresh.steps_with_nan, len(steps), len(str(error)) < 2000
    raise AssertionError("it did not raise")


@contextmanager
def validation(switch: bool) -> Iterator[None]:
    """Whether torch's distributions check their arguments, which ``torch.compile`` turns off for the whole process."""
    distribution = th.distributions.Distribution
    before = distribution._validate_args
    distribution.set_default_validate_args(switch)
    try:
        yield
    finally:
        distribution.set_default_validate_args(before)


def test_the_members_are_all_here() -> None:
    """The family of this suite is the library's."""
    assert set(FAMILY) == {TRPO, NPG, PPOPenalty, VineTRPO}
