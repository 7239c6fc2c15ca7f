"""Which policies are plain MLPs; one that is not learns what SB3's own modules make of it."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.distributions import DiagGaussianDistribution, StateDependentNoiseDistribution
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor
from torch import nn

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.policies.plain import (
    ASSUMPTIONS,
    ELEMENTWISE,
    ORIGINAL,
    features,
    is_as_written,
    is_plain_buffer,
    known_modules,
    plain_actor,
    plain_critic,
)
from tests.conftest import DISTRIBUTIONS, collect, random_env

Break = Callable[[Any, ExitStack], Any]
VECTORS = spaces.Dict({"b": spaces.Box(-2.0, 2.0, (2, 2)), "a": spaces.Discrete(3), "c": spaces.Box(-1.0, 1.0, (1,))})


def policy_of(policy: Any = "MlpPolicy", name: str = "box", **policy_kwargs: Any) -> Any:
    return model_of(TRPO, policy, name, **policy_kwargs).policy


def model_of(algorithm: Any, policy: Any = "MlpPolicy", name: str = "box", **policy_kwargs: Any) -> Any:
    space, options = DISTRIBUTIONS[name]
    settings = {"n_steps": 32, "batch_size": 32, "seed": 0, "n_critic_updates": 2, **options}
    of_policy = {"net_arch": [8, 8], **options.get("policy_kwargs", {}), **policy_kwargs}
    env = random_env(space, VECTORS if policy == "MultiInputPolicy" else None)
    return algorithm(policy, env, **{**settings, "policy_kwargs": of_policy})


def set_class(thing: Any, **members: Any) -> None:
    """As if it had been made of a class derived from its own."""
    thing.__class__ = type("Mine", (type(thing),), members)


def patch_class(stack: ExitStack, cls: type, name: str, changed: Callable[[Any], Any]) -> None:
    """
    Put another function in the place of a class's own, which is given to ``changed``.

    A function that is inherited is found again where it was.
    """
    is_own, before = name in vars(cls), getattr(cls, name)
    setattr(cls, name, changed(before))
    stack.callback(lambda: setattr(cls, name, before) if is_own else delattr(cls, name))


def doubled(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: 2 * method(*args, **kwargs)


def plus_one_log_prob(method: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        actions, values, log_prob = method(*args, **kwargs)
        return actions, values + 1, log_prob

    return forward


def twice_the_std(distribution: StateDependentNoiseDistribution, log_std: th.Tensor) -> th.Tensor:
    return 2 * StateDependentNoiseDistribution.get_std(distribution, log_std)


@dataclass(frozen=True)
class Case:
    """
    One thing that a policy is given which plain ones have not.

    :param change: of the policy; what it does to classes or to torch is taken back by the stack
    :param policy_kwargs: that the policy is made with
    :param policy: its class
    :param name: of its distribution
    """

    change: Break = lambda policy, stack: None
    policy_kwargs: dict[str, Any] = field(default_factory=dict)
    policy: Any = "MlpPolicy"
    name: str = "box"


class Doubling(FlattenExtractor):
    def forward(self, observations: th.Tensor) -> th.Tensor:
        return 2 * super().forward(observations)


class Predicting(ActorCriticPolicy):
    def predict_values(self, obs: Any) -> th.Tensor:
        return super().predict_values(obs) + 1


class Deeper(MlpExtractor):
    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return super().forward_actor(features) ** 2

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return self.forward_actor(features), self.forward_critic(features)


class WithDeeper(ActorCriticPolicy):
    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = Deeper(self.features_dim, self.net_arch, self.activation_fn, self.device)


class Shifted(DiagGaussianDistribution):
    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return super().log_prob(actions) - self.distribution.mean.pow(2).sum(-1)


class WithShifted(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_dist = Shifted(3)


def _learn_features(policy: Any, stack: ExitStack) -> None:
    policy.action_dist.learn_features = True


def _log_std_in_a_buffer(policy: Any, stack: ExitStack) -> None:
    del policy.log_std
    policy.register_buffer("log_std", th.full((3,), -0.5))


def _log_std_as_an_attribute(policy: Any, stack: ExitStack) -> None:
    del policy.log_std
    policy.log_std = th.full((3,), -0.5)


def _patch_distribution(policy: Any, stack: ExitStack) -> None:
    policy.action_dist.log_prob = doubled(policy.action_dist.log_prob)


def _patch_policy(policy: Any, stack: ExitStack) -> None:
    policy.forward = plus_one_log_prob(policy.forward)


def _patch_extractor(policy: Any, stack: ExitStack) -> None:
    policy.features_extractor.forward = doubled(policy.features_extractor.forward)


def _patch_mlp_extractor(policy: Any, stack: ExitStack) -> None:
    policy.mlp_extractor.forward_critic = doubled(policy.mlp_extractor.forward_critic)


def _patch_flatten(policy: Any, stack: ExitStack) -> None:
    policy.features_extractor.flatten.forward = doubled(policy.features_extractor.flatten.forward)


def _append_to_combined(policy: Any, stack: ExitStack) -> None:
    policy.features_extractor.extractors["b"] = nn.Sequential(nn.Flatten(), nn.Hardtanh())


def _hook_all(register: str, hook: Callable[..., Any]) -> Break:
    def change(policy: Any, stack: ExitStack) -> None:
        stack.callback(getattr(nn.modules.module, register)(hook).remove)

    return change


def _double_linear_output(module: nn.Module, inputs: Any, output: Any) -> Any:
    return 2 * output if isinstance(module, nn.Linear) else None


def _double_linear_input(module: nn.Module, inputs: Any) -> Any:
    return (2 * inputs[0],) if isinstance(module, nn.Linear) else None


def _halve_gradient(module: nn.Module, into: Any, out: Any) -> Any:
    return tuple(gradient if gradient is None else gradient / 2 for gradient in into)


def _clip_gradient(parameter: th.Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.clamp_(-1e-3, 1e-3)


BROKEN: dict[str, dict[str, Case]] = {
    "methods are SB3's": {
        "class": Case(policy=Predicting),
        "instance": Case(_patch_policy),
        "class of SB3": Case(lambda policy, stack: patch_class(stack, ActorCriticPolicy, "forward", plus_one_log_prob)),
        "class above": Case(lambda policy, stack: patch_class(stack, BasePolicy, "extract_features", doubled)),
        "call of modules": Case(
            lambda policy, stack: patch_class(
                stack,
                nn.Module,
                "__call__",
                lambda call: lambda self, *args: 2 * call(self, *args) if isinstance(self, nn.Linear) else call(self, *args),
            )
        ),
    },
    "the action distribution is SB3's": {
        "class": Case(policy=WithShifted),
        "instance": Case(_patch_distribution),
        "class of SB3": Case(lambda policy, stack: patch_class(stack, DiagGaussianDistribution, "log_prob", doubled)),
        "class of gSDE": Case(lambda policy, stack: set_class(policy.action_dist, get_std=twice_the_std), name="gsde"),
    },
    "the variance is not learned through the network": {"gsde": Case(_learn_features, name="gsde")},
    "the standard deviation is a parameter": {
        "buffer": Case(_log_std_in_a_buffer),
        "attribute": Case(_log_std_as_an_attribute),
    },
    "observations are only flattened": {
        "class": Case(policy_kwargs={"features_extractor_class": Doubling}),
        "instance": Case(_patch_extractor),
        "flatten": Case(_patch_flatten),
        "class of SB3": Case(lambda policy, stack: patch_class(stack, FlattenExtractor, "forward", doubled)),
        "class of torch": Case(lambda policy, stack: patch_class(stack, nn.Flatten, "forward", doubled)),
        "one of a dict": Case(_append_to_combined, policy="MultiInputPolicy"),
        "combined": Case(
            lambda policy, stack: patch_class(stack, CombinedExtractor, "forward", doubled), policy="MultiInputPolicy"
        ),
    },
    "the MLP extractor is SB3's": {
        "class": Case(policy=WithDeeper),
        "instance": Case(_patch_mlp_extractor),
        "class of SB3": Case(lambda policy, stack: patch_class(stack, MlpExtractor, "forward_actor", doubled)),
    },
    "there are no hooks on modules": {
        "forward": Case(lambda policy, stack: policy.action_net.register_forward_hook(_double_linear_output)),
        "forward pre": Case(lambda policy, stack: policy.value_net.register_forward_pre_hook(_double_linear_input)),
        "backward": Case(
            lambda policy, stack: policy.mlp_extractor.policy_net[2].register_full_backward_hook(_halve_gradient)
        ),
        "backward pre": Case(
            lambda policy, stack: policy.mlp_extractor.value_net[2].register_full_backward_pre_hook(
                lambda module, out: (out[0] / 2,)
            )
        ),
        "all forward": Case(_hook_all("register_module_forward_hook", _double_linear_output)),
        "all forward pre": Case(_hook_all("register_module_forward_pre_hook", _double_linear_input)),
        "all backward": Case(_hook_all("register_module_full_backward_hook", _halve_gradient)),
        "all backward pre": Case(
            _hook_all(
                "register_module_full_backward_pre_hook", lambda module, out: tuple(g if g is None else g / 2 for g in out)
            )
        ),
        "old weight norm": Case(lambda policy, stack: nn.utils.weight_norm(policy.action_net)),
    },
    "there are no hooks on parameters": {
        "gradient of the actor": Case(
            lambda policy, stack: policy.action_net.weight.register_hook(lambda g: g * th.tensor([[0.0], [1.0], [1.0]]))
        ),
        "gradient of the critic": Case(lambda policy, stack: policy.value_net.bias.register_hook(th.zeros_like)),
        "accumulated gradient": Case(
            lambda policy, stack: policy.value_net.weight.register_post_accumulate_grad_hook(_clip_gradient)
        ),
    },
    "torch's autocast is off": {"autocast": Case(lambda policy, stack: stack.enter_context(th.autocast("cpu", th.float16)))},
}
CASES = [pytest.param(key, name, id=f"{key}-{name}") for key, cases in BROKEN.items() for name in cases]


def test_every_assumption_has_an_example_that_breaks_it() -> None:
    assert BROKEN.keys() == ASSUMPTIONS.keys()
    assert all(BROKEN.values())


@pytest.mark.parametrize(("key", "name"), CASES)
def test_policy_of_which_an_assumption_does_not_hold_is_not_plain(key: str, name: str) -> None:
    case = BROKEN[key][name]
    with ExitStack() as stack:
        policy = policy_of(case.policy, case.name, **case.policy_kwargs)
        case.change(policy, stack)
        assert {words for words, holds in ASSUMPTIONS.items() if not holds(policy)} == {key}
        assert plain_actor(policy) is None
        assert plain_critic(policy) is None
    assert plain_actor(policy_of(name=case.name)) is not None, "the example has been taken back"


def learned(
    algorithm: Any, case: Case, general: bool = False, update: bool = True
) -> tuple[dict[str, Any], dict[str, th.Tensor]]:
    """One rollout, as arrays, and the parameters after its update."""
    with ExitStack() as stack:
        model = model_of(algorithm, case.policy, case.name, **case.policy_kwargs)
        case.change(model.policy, stack)
        if general:
            model.policy.register_forward_hook(lambda module, inputs, output: None)
        th.manual_seed(1)
        collect(model)
        names = ("actions", "values", "log_probs", "rewards", "advantages")
        rollout = {name: getattr(model.rollout_buffer, name).astype(np.float32) for name in names}
        if update:
            model.train()
        return rollout, {name: value.detach().clone() for name, value in model.policy.named_parameters()}


def assert_learns_as_sb3s_modules_do(case: Case) -> None:
    """The rollout is sb3-contrib's, the update that of a policy with a hook that does nothing; neither is a plain policy's."""
    rollout, parameters = learned(TRPO, case)
    theirs, _ = learned(sb3_contrib.TRPO, case, update=False)
    for name, array in theirs.items():
        np.testing.assert_allclose(rollout[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    _, expected = learned(TRPO, case, general=True)
    for name, value in expected.items():
        th.testing.assert_close(parameters[name], value, rtol=1e-4, atol=1e-6, msg=name)
    plain_case = Case(policy="MultiInputPolicy" if case.policy == "MultiInputPolicy" else "MlpPolicy", name=case.name)
    plain_rollout, plain = learned(TRPO, plain_case)
    same_rollout = all(np.allclose(rollout[name], array, atol=1e-5) for name, array in plain_rollout.items())
    same_parameters = parameters.keys() == plain.keys() and all(
        th.allclose(plain[name], value, atol=1e-5) for name, value in parameters.items()
    )
    assert not (same_rollout and same_parameters), "to take it for a plain policy would not be noticed"


class MyLinear(nn.Linear):
    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return 2 * super().forward(inputs)


class MySequential(nn.Sequential):
    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return 2 * super().forward(inputs)


class MyTanh(nn.Tanh):
    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return 2 * super().forward(inputs)


NETWORKS = {"actor": ("policy_net", "action_net"), "critic": ("value_net", "value_net")}
Edit = Callable[[nn.Sequential, Any, Any, ExitStack], Any]


def _replace_sequence(sequence: nn.Sequential, head: Any, policy: Any, stack: ExitStack) -> None:
    name = "policy_net" if sequence is policy.mlp_extractor.policy_net else "value_net"
    setattr(policy.mlp_extractor, name, MySequential(*sequence))


def _set(index: int, make: Callable[[], nn.Module]) -> Edit:
    def edit(sequence: nn.Sequential, head: Any, policy: Any, stack: ExitStack) -> None:
        th.manual_seed(5)
        sequence[index] = make()

    return edit


def _patch_sequence(sequence: nn.Sequential, head: Any, policy: Any, stack: ExitStack) -> None:
    sequence.forward = doubled(sequence.forward)  # type: ignore[method-assign]


def _patch_layer(sequence: Any, head: Any, policy: Any, stack: ExitStack) -> None:
    sequence[2].forward = doubled(sequence[2].forward)


def _patch_activation(sequence: Any, head: Any, policy: Any, stack: ExitStack) -> None:
    sequence[1].forward = doubled(sequence[1].forward)


def _patch_head(sequence: Any, head: Any, policy: Any, stack: ExitStack) -> None:
    head.forward = doubled(head.forward)


def _drop_bias_of_head(sequence: Any, head: Any, policy: Any, stack: ExitStack) -> None:
    head.bias = None


def _remove_activation(sequence: Any, head: Any, policy: Any, stack: ExitStack) -> None:
    del sequence[1]


def _share_within(sequence: Any, head: Any, policy: Any, stack: ExitStack) -> None:
    sequence[0].bias = sequence[2].bias


def _share_elsewhere(sequence: Any, head: Any, policy: Any, stack: ExitStack) -> None:
    policy.register_parameter("again", head.weight)


#: One for each condition on a network alone: on the actor's, its critic stays plain, and the other way round
EDITS: dict[str, Edit] = {
    "sequence of another class": _replace_sequence,
    "patched sequence": _patch_sequence,
    "dropout": lambda sequence, head, policy, stack: sequence.append(nn.Dropout(0.5)),
    "layer norm": _set(1, lambda: nn.LayerNorm(8)),
    "activation with parameters": _set(1, nn.PReLU),
    "random activation": _set(1, nn.RReLU),
    "softmax": _set(3, lambda: nn.Softmax(dim=1)),
    "layer of another class": _set(2, lambda: MyLinear(8, 8)),
    "activation of another class": _set(1, MyTanh),
    "patched layer": _patch_layer,
    "patched activation": _patch_activation,
    "patched head": _patch_head,
    "layer without bias": _set(2, lambda: nn.Linear(8, 8, bias=False)),
    "head without bias": _drop_bias_of_head,
    "two activations": lambda sequence, head, policy, stack: sequence.append(nn.Sigmoid()),
    "no activation between layers": _remove_activation,
    "activation first": lambda sequence, head, policy, stack: sequence.insert(0, nn.Tanh()),
    "nested": _set(1, lambda: nn.Sequential(nn.Tanh())),
    "frozen layer": lambda sequence, head, policy, stack: sequence[0].requires_grad_(False),
    "frozen bias": lambda sequence, head, policy, stack: head.bias.requires_grad_(False),
    "parametrized": lambda sequence, head, policy, stack: nn.utils.parametrizations.weight_norm(sequence[2]),
    "shared within": _share_within,
    "shared elsewhere": _share_elsewhere,
}


def make_edit(edit: str, network: str, policy: Any, stack: ExitStack) -> None:
    hidden, head = NETWORKS[network]
    EDITS[edit](getattr(policy.mlp_extractor, hidden), getattr(policy, head), policy, stack)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("edit", EDITS)
def test_edited_network_alone_is_not_plain(edit: str, network: str) -> None:
    policy = policy_of()
    with ExitStack() as stack:
        make_edit(edit, network, policy, stack)
        assert (plain_actor(policy) is None) == (network == "actor")
        assert (plain_critic(policy) is None) == (network == "critic")


#: Of the edits, those after which all modules are known still
KNOWN = {
    "frozen bias", "frozen layer", "layer norm", "nested", "no activation between layers",
    "shared elsewhere", "shared within", "two activations",
}  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("edit", EDITS)
def test_known_modules_are_those_that_the_policy_calls(edit: str, network: str) -> None:
    policy = policy_of()
    with ExitStack() as stack:
        make_edit(edit, network, policy, stack)
        found = known_modules(policy)
        assert (found is not None) == (edit in KNOWN)
        if found is not None:
            inputs = th.randn(5, policy.features_dim)
            outputs = policy.action_net(policy.mlp_extractor.forward_actor(inputs))
            values = policy.value_net(policy.mlp_extractor.forward_critic(inputs))
            for modules, expected in zip(found, (outputs, values), strict=True):
                made = inputs
                for module in modules:
                    made = module(made)
                th.testing.assert_close(made, expected, rtol=0, atol=0)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("edit", EDITS)
def test_edited_network_learns_as_sb3s_modules_do(edit: str, network: str) -> None:
    def change(policy: Any, stack: ExitStack) -> None:
        make_edit(edit, network, policy, stack)
        # What is new is to be trained as well.
        policy.optimizer = policy.optimizer_class(policy.parameters(), lr=1e-3)

    assert_learns_as_sb3s_modules_do(Case(change))


@pytest.mark.parametrize("cls", [nn.Linear, nn.Tanh, nn.Sequential])
def test_patched_class_of_torch_is_not_plain(cls: Any) -> None:
    case = Case(lambda policy, stack: patch_class(stack, cls, "forward", doubled))
    with ExitStack() as stack:
        policy = policy_of()
        case.change(policy, stack)
        assert plain_actor(policy) is None
        assert plain_critic(policy) is None
    assert plain_actor(policy) is not None
    assert_learns_as_sb3s_modules_do(case)


def test_shared_between_actor_and_critic_is_neither_ones() -> None:
    def change(policy: Any, stack: ExitStack) -> None:
        policy.mlp_extractor.value_net[0].weight = policy.mlp_extractor.policy_net[0].weight

    policy = policy_of()
    change(policy, ExitStack())
    assert plain_actor(policy) is None
    assert plain_critic(policy) is None
    assert_learns_as_sb3s_modules_do(Case(change))


@pytest.mark.parametrize(
    "part", [lambda policy: policy, lambda policy: policy.action_net, lambda policy: policy.mlp_extractor]
)
def test_compiled_is_not_plain(part: Callable[[Any], nn.Module]) -> None:
    policy = policy_of()
    part(policy).compile(backend="eager")
    assert plain_actor(policy) is None


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
    assert all(holds(policy) for holds in ASSUMPTIONS.values())


@pytest.mark.parametrize("activation", ELEMENTWISE)
@pytest.mark.parametrize("net_arch", [[], [3], {"pi": [8, 8, 8], "vf": []}])
def test_sizes_and_activations(activation: type[nn.Module], net_arch: Any) -> None:
    policy = policy_of(activation_fn=activation, net_arch=net_arch)
    actor, critic = plain_actor(policy), plain_critic(policy)
    assert actor is not None
    assert critic is not None
    assert actor.parameters[-1] is policy.action_net.bias
    assert critic.parameters[-1] is policy.value_net.bias


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_plain_policies_learn_as_sb3s_modules_do(name: str) -> None:
    plain, general = (learned(TRPO, Case(name=name), general) for general in (False, True))
    squashed = name == "gsde_squashed"
    for key, array in general[0].items():
        # The log-probability of a squashed action takes its atanh, which makes rounding errors near 1 a million times larger.
        np.testing.assert_allclose(plain[0][key], array, rtol=1e-4, atol=0.2 if squashed and key == "log_probs" else 1e-5)
    for key, value in general[1].items():
        th.testing.assert_close(
            plain[1][key], value, rtol=1e-2 if squashed else 1e-3, atol=1e-3 if squashed else 1e-5, msg=key
        )


class Inplace(nn.ReLU):
    """Not of the class that is known, whatever it does."""


def inplace_relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def inplace_elu() -> nn.Module:
    return nn.ELU(inplace=True)


@pytest.mark.parametrize("activation", [inplace_relu, inplace_elu])
def test_activations_in_place_are_plain(activation: Callable[[], nn.Module]) -> None:
    kwargs = {"activation_fn": activation}
    policy = policy_of(**kwargs)
    network = plain_actor(policy)
    assert network is not None
    assert plain_critic(policy) is not None
    inputs = th.linspace(-1, 1, 5)
    before = inputs.clone()
    assert not th.equal(network.activations[0](inputs), before)
    assert th.equal(inputs, before), "the closed forms need the inputs again"
    assert policy.mlp_extractor.policy_net[1].inplace, "the policy's own is as it was"
    plain, general = (learned(TRPO, Case(policy_kwargs=kwargs), general) for general in (False, True))
    for key, value in general[1].items():
        th.testing.assert_close(plain[1][key], value, rtol=1e-3, atol=1e-5, msg=key)


def test_dicts_of_vectors_are_plain_and_images_are_not() -> None:
    policy = policy_of("MultiInputPolicy")
    assert plain_actor(policy) is not None
    assert plain_critic(policy) is not None
    plain, general = (learned(TRPO, Case(policy="MultiInputPolicy"), general) for general in (False, True))
    for key, value in general[1].items():
        th.testing.assert_close(plain[1][key], value, rtol=1e-3, atol=1e-5, msg=key)
    with_images = TRPO("MultiInputPolicy", SimpleMultiObsEnv(), n_steps=32, batch_size=32).policy
    assert plain_actor(with_images) is None
    assert plain_critic(with_images) is None
    images = TRPO("CnnPolicy", FakeImageEnv(screen_height=36, screen_width=36), n_steps=32, batch_size=32).policy
    assert plain_actor(images) is None


def test_extractors_of_their_own_for_actor_and_critic_are_plain_where_both_only_flatten() -> None:
    policy = policy_of(share_features_extractor=False)
    assert plain_actor(policy) is not None
    policy.vf_features_extractor = Doubling(policy.observation_space)
    assert plain_actor(policy) is None
    assert plain_critic(policy) is None


def test_classes_that_only_name_themselves_are_plain() -> None:
    assert plain_actor(policy_of(type("Mine", (ActorCriticPolicy,), {}))) is not None


def test_methods_that_make_a_policy_may_be_its_own() -> None:
    """``init_weights``, ``predict`` and the like are not what a rollout or an update calls."""

    def predict(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ActorCriticPolicy.predict(self, *args, **kwargs)

    def anything(self: Any) -> int:
        return 1

    assert plain_actor(policy_of(type("Mine", (ActorCriticPolicy,), {"predict": predict, "anything": anything}))) is not None


def changed_method(method: str) -> Callable[..., Any]:
    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(ActorCriticPolicy, method)(self, *args, **kwargs)

    return changed


@pytest.mark.parametrize("method", sorted(ORIGINAL[ActorCriticPolicy]))
def test_a_method_of_its_own_is_not_plain(method: str) -> None:
    policy = policy_of()
    set_class(policy, **{method: changed_method(method)})
    assert plain_actor(policy) is None
    assert plain_critic(policy) is None
    if not method.startswith("__"):
        policy = policy_of()
        setattr(policy, method, getattr(policy, method))
        assert plain_actor(policy) is None
    with ExitStack() as stack:
        policy = policy_of()
        patch_class(stack, ActorCriticPolicy, method, lambda own: lambda self, *args, **kwargs: own(self, *args, **kwargs))
        assert plain_actor(policy) is None
    assert plain_actor(policy) is not None


def test_what_a_class_was_written_to_do() -> None:
    assert is_as_written(nn.Tanh(), nn.Tanh)
    assert not is_as_written(nn.Tanh(), nn.ReLU)
    assert not is_as_written(MyTanh(), nn.Tanh)
    assert is_as_written(Inplace(), nn.ReLU)
    patched = nn.Tanh()
    patched.forward = patched.forward  # type: ignore[method-assign]
    assert not is_as_written(patched, nn.Tanh)


class Counting(RolloutBuffer):
    pass


@pytest.mark.parametrize(("policy", "kind"), [("MlpPolicy", RolloutBuffer), ("MultiInputPolicy", DictRolloutBuffer)])
def test_buffers_of_sb3_are_plain_until_they_are_changed(policy: str, kind: Any) -> None:
    buffer = model_of(TRPO, policy).rollout_buffer
    assert type(buffer) is kind
    assert is_plain_buffer(buffer)
    for method in ORIGINAL[kind]:
        setattr(buffer, method, getattr(buffer, method))
        assert not is_plain_buffer(buffer), method
        delattr(buffer, method)
        with ExitStack() as stack:
            patch_class(stack, kind, method, lambda own: lambda *args, **kwargs: own(*args, **kwargs))
            assert not is_plain_buffer(buffer), method
    assert is_plain_buffer(buffer)
    set_class(buffer)
    assert not is_plain_buffer(buffer)
