"""Which policies are plain MLPs."""

from typing import Any

import pytest
import torch as th
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.policies.plain import ELEMENTWISE, METHODS, features, plain_actor, plain_critic
from tests.conftest import DISTRIBUTIONS, random_env


def policy_of(policy: Any = "MlpPolicy", name: str = "box", **policy_kwargs: Any) -> ActorCriticPolicy:
    space, options = DISTRIBUTIONS[name]
    settings = {"n_steps": 32, **options, "policy_kwargs": {**options.get("policy_kwargs", {}), **policy_kwargs}}
    return TRPO(policy, random_env(space), **settings).policy


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_sb3s_own_mlp_policies_are_plain(name: str) -> None:
    policy = policy_of(name=name)
    observations = th.randn(5, 4)
    for network, expected in (
        (plain_actor(policy), policy.action_net(policy.mlp_extractor.forward_actor(observations))),
        (plain_critic(policy), policy.predict_values(observations)),
    ):
        assert network is not None
        output = features(policy, observations)
        for layer, activation in zip(network.layers, [*network.activations, nn.Identity()], strict=True):
            output = activation(layer(output))
        th.testing.assert_close(output, expected)


@pytest.mark.parametrize("activation", ELEMENTWISE)
@pytest.mark.parametrize("net_arch", [[], [3], {"pi": [8, 8, 8], "vf": []}])
def test_sizes_and_activations(activation: type[nn.Module], net_arch: Any) -> None:
    policy = policy_of(activation_fn=activation, net_arch=net_arch)
    actor, critic = plain_actor(policy), plain_critic(policy)
    assert actor is not None
    assert critic is not None
    assert actor.parameters[-1] is policy.action_net.bias
    assert critic.parameters[-1] is policy.value_net.bias


def test_classes_that_only_name_themselves_are_plain() -> None:
    assert plain_actor(policy_of(type("Mine", (ActorCriticPolicy,), {}))) is not None


@pytest.mark.parametrize("method", METHODS)
def test_a_method_of_its_own_is_not_plain(method: str) -> None:
    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(ActorCriticPolicy, method)(self, *args, **kwargs)

    policy = policy_of(type("Mine", (ActorCriticPolicy,), {method: changed}))
    assert plain_actor(policy) is None
    assert plain_critic(policy) is None
    policy = policy_of()
    if method != "__call__":
        setattr(policy, method, getattr(policy, method))
        assert plain_actor(policy) is None


class Doubling(FlattenExtractor):
    def forward(self, observations: th.Tensor) -> th.Tensor:
        return 2 * super().forward(observations)


class WithDropout(MlpExtractor):
    pass


def test_other_architectures_are_not_plain() -> None:
    assert plain_actor(policy_of(features_extractor_class=Doubling)) is None
    assert plain_actor(policy_of(activation_fn=nn.PReLU)) is None
    images, several = FakeImageEnv(screen_height=36, screen_width=36), SimpleMultiObsEnv()
    assert plain_actor(TRPO("CnnPolicy", images, n_steps=32).policy) is None
    assert plain_actor(TRPO("MultiInputPolicy", several, n_steps=32).policy) is None


def test_edited_policies_are_not_plain() -> None:
    policy = policy_of()
    policy.mlp_extractor.policy_net.append(nn.Dropout(0.5))
    assert plain_actor(policy) is None
    assert plain_critic(policy) is not None, "its critic is as it was"

    policy = policy_of()
    policy.mlp_extractor.policy_net[0].register_forward_hook(lambda *args: None)
    assert plain_actor(policy) is None

    policy = policy_of()
    policy.mlp_extractor.policy_net.append(nn.Tanh())
    assert plain_actor(policy) is None

    policy = policy_of()
    policy.action_net.bias = None
    assert plain_actor(policy) is None

    policy = policy_of()
    policy.action_net.weight.requires_grad_(False)
    assert plain_actor(policy) is None

    policy = policy_of()
    nn.utils.parametrizations.weight_norm(policy.action_net)
    assert plain_actor(policy) is None

    policy = policy_of()
    policy.mlp_extractor.value_net[0].weight = policy.mlp_extractor.policy_net[0].weight
    assert plain_actor(policy) is None
    assert plain_critic(policy) is None
