"""The policy as it was: what it gives, and what of a change it notices."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo_plus.rollouts.frozen import FrozenPolicy
from tests.conftest import DISTRIBUTIONS
from tests.rollouts.conftest import make

Change = Callable[[ActorCriticPolicy], Any]


def frozen_of(policy: ActorCriticPolicy) -> FrozenPolicy:
    frozen = FrozenPolicy.of(policy)
    assert frozen is not None
    return frozen


def _replace_data(policy: Any) -> None:
    policy.action_net.bias.data = th.full_like(policy.action_net.bias, 0.7)


def _write_data(policy: Any) -> None:
    policy.action_net.bias.data[...] = 0.7


def _write_one_number(policy: Any) -> None:
    policy.mlp_extractor.policy_net[0].weight.data[3, 2] += 1e-6


def _write_numpy_view(policy: Any) -> None:
    policy.action_net.bias.detach().numpy()[...] = 0.7


def _flip_the_sign_of_zero(policy: Any) -> None:
    policy.action_net.bias.data.neg_()


def _replace_layer(policy: Any) -> None:
    policy.action_net = copy.deepcopy(policy.action_net)


def _replace_hidden_layer(policy: Any) -> None:
    policy.mlp_extractor.policy_net[2] = copy.deepcopy(policy.mlp_extractor.policy_net[2])


def _replace_activation(policy: Any) -> None:
    policy.mlp_extractor.policy_net[1] = nn.Softplus()


def _replace_extractor(policy: Any) -> None:
    policy.features_extractor = copy.deepcopy(policy.features_extractor)


def _replace_parameter(policy: Any) -> None:
    policy.action_net.weight = nn.Parameter(policy.action_net.weight.detach().clone())


def _replace_log_std(policy: Any) -> None:
    policy.log_std = nn.Parameter(policy.log_std.detach().clone())


def _replace_distribution(policy: Any) -> None:
    policy.action_dist = copy.copy(policy.action_dist)


def _patch_forward_of_layer(policy: Any) -> None:
    policy.action_net.forward = lambda inputs: inputs


def _patch_forward(policy: Any) -> None:
    policy.forward = lambda *args, **kwargs: None


def _patch_distribution(policy: Any) -> None:
    policy.action_dist.log_prob = lambda actions: actions.sum(1)


def _append_layer(policy: Any) -> None:
    policy.mlp_extractor.policy_net.append(nn.ReLU())


def _remove_layer(policy: Any) -> None:
    del policy.mlp_extractor.policy_net[3]


def _share_parameter(policy: Any) -> None:
    policy.mlp_extractor.value_net[0].weight = policy.mlp_extractor.policy_net[0].weight


def _without_grad(write: Change) -> Change:
    def change(policy: Any) -> None:
        with th.no_grad():
            write(policy)

    return change


CHANGES: dict[str, Change] = {
    "in place": _without_grad(lambda policy: policy.action_net.bias.fill_(0.7)),
    "log_std in place": _without_grad(lambda policy: policy.log_std.fill_(-1.0)),
    "copied into": _without_grad(lambda policy: policy.value_net.weight.copy_(th.ones_like(policy.value_net.weight))),
    ".data =": _replace_data,
    ".data[...] =": _write_data,
    "one number": _write_one_number,
    "the sign of a zero": _flip_the_sign_of_zero,
    "numpy view": _write_numpy_view,
    "set_": _without_grad(lambda policy: policy.action_net.bias.set_(th.full_like(policy.action_net.bias, 0.7))),
    "critic": _without_grad(lambda policy: policy.mlp_extractor.value_net[2].bias.add_(1)),
    "state dict": lambda policy: policy.load_state_dict({n: v + 1 for n, v in policy.state_dict().items()}),
    "vector": lambda policy: policy.load_from_vector(policy.parameters_to_vector() + 1),
    "precision": lambda policy: policy.double(),
    "layer": _replace_layer,
    "hidden layer": _replace_hidden_layer,
    "activation": _replace_activation,
    "features extractor": _replace_extractor,
    "appended layer": _append_layer,
    "removed layer": _remove_layer,
    "parameter": _replace_parameter,
    "shared parameter": _share_parameter,
    "log_std replaced": _replace_log_std,
    "action_dist replaced": _replace_distribution,
    "method of action_dist": _patch_distribution,
    "forward hook": lambda policy: policy.action_net.register_forward_hook(lambda *_: None),
    "forward pre-hook": lambda policy: policy.register_forward_pre_hook(lambda *_: None),
    "hook on the extractor": lambda policy: policy.mlp_extractor.register_forward_hook(lambda *_: None),
    "forward of a layer": _patch_forward_of_layer,
    "forward": _patch_forward,
    "weight norm": lambda policy: nn.utils.parametrizations.weight_norm(policy.action_net),
}


def _change_activation(policy: Any) -> None:
    policy.mlp_extractor.policy_net[1].negative_slope = -1.0


def test_setting_of_an_activation_is_noticed_or_kept_from_the_frozen_policy() -> None:
    policy = make(policy_kwargs={"activation_fn": nn.LeakyReLU}).policy
    frozen, observations = frozen_of(policy), th.randn(7, 4)
    mode = frozen.distribution(observations).mode()
    _change_activation(policy)
    assert not frozen.is_as_the_policy()
    assert th.equal(frozen.distribution(observations).mode(), mode)


@pytest.mark.parametrize("kind", ["buffer", "attribute"])
@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_log_std_that_is_no_parameter_is_watched_too(kind: str, how: str) -> None:
    """Where it is fixed, or follows a schedule of the user's."""
    policy = make().policy
    del policy.log_std
    if kind == "buffer":
        policy.register_buffer("log_std", th.zeros(3))
    else:
        policy.log_std = th.zeros(3)
    frozen = FrozenPolicy.of(policy)
    if how == "in place":
        policy.log_std.fill_(-1.0)
    else:
        policy.log_std = th.full((3,), -1.0)
    assert frozen is None or not frozen.is_as_the_policy()


@pytest.mark.parametrize(("cls", "name"), [(ActorCriticPolicy, "forward"), (nn.Linear, "forward"), (nn.Tanh, "forward")])
def test_patch_of_a_class_is_noticed(cls: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = frozen_of(make().policy)
    monkeypatch.setattr(cls, name, lambda self, *args: None)
    assert not frozen.is_as_the_policy()


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_hook_on_all_modules_is_noticed(register: str) -> None:
    frozen = frozen_of(make().policy)
    handle = getattr(nn.modules.module, register)(lambda *_: None)
    try:
        assert not frozen.is_as_the_policy()
    finally:
        handle.remove()


@pytest.mark.parametrize("change", CHANGES)
def test_change_is_noticed(change: str) -> None:
    policy = make().policy
    frozen = frozen_of(policy)
    assert frozen.is_as_the_policy()
    CHANGES[change](policy)
    assert not frozen.is_as_the_policy()


def _step_back(policy: Any) -> None:
    before = copy.deepcopy(policy.state_dict())
    _write_data(policy)
    policy.load_state_dict(before)


NO_CHANGES: dict[str, Change] = {
    "acts": _without_grad(lambda policy: policy(th.randn(3, 4))),
    "predicts": lambda policy: policy.predict(np.zeros((3, 4), np.float32)),
    "evaluates": lambda policy: policy.evaluate_actions(th.randn(3, 4), th.randn(3, 3)),
    "training mode": lambda policy: policy.set_training_mode(True),
    "gradients": lambda policy: policy.predict_values(th.randn(3, 4)).sum().backward(),
    "optimiser": lambda policy: setattr(policy.optimizer, "param_groups", policy.optimizer.param_groups),
    "there and back": _step_back,
}


@pytest.mark.parametrize("no_change", NO_CHANGES)
def test_use_is_no_change(no_change: str) -> None:
    policy = make().policy
    frozen = frozen_of(policy)
    NO_CHANGES[no_change](policy)
    assert frozen.is_as_the_policy()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_values_and_distribution_are_the_policys_to_the_bit_and_stay_so(name: str) -> None:
    policy = make(name, policy_kwargs={**DISTRIBUTIONS[name][1].get("policy_kwargs", {}), "net_arch": [16, 16]}).policy
    frozen = frozen_of(policy)
    observations = th.randn(7, 4)
    with th.no_grad():
        actions, _, _ = policy(observations)
        values, log_probs, entropy = policy.evaluate_actions(observations, actions)
        own = policy.get_distribution(observations)
        mode = own.mode()
    shown = dict(vars(policy.action_dist))
    for when in ("before", "after"):
        assert th.equal(frozen.values(observations), values), when
        distribution = frozen.distribution(observations)
        assert th.equal(distribution.log_prob(actions), log_probs), when
        assert th.equal(distribution.mode(), mode), when
        again = distribution.entropy()
        assert (again is None) if entropy is None else th.equal(again, entropy)
        assert vars(policy.action_dist).keys() == shown.keys()
        assert all(vars(policy.action_dist)[key] is value for key, value in shown.items()), "the policy's own is as it was"
        with th.no_grad():
            for parameter in policy.parameters():
                parameter.add_(1.0)
    assert not th.equal(policy.predict_values(observations), values)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distribution_is_put_into_the_policys_where_that_is_asked_for(name: str) -> None:
    policy = make(name).policy
    frozen = frozen_of(policy)
    observations = th.randn(7, 4)
    with th.no_grad():
        mode = policy.get_distribution(observations).mode().clone()
        policy.get_distribution(observations + 1)
    assert frozen.distribution(observations, into=policy.action_dist) is policy.action_dist
    assert th.equal(policy.action_dist.mode(), mode)


def test_policies_that_are_not_plain_are_not_frozen() -> None:
    policy = make().policy
    policy.mlp_extractor.policy_net.append(nn.Dropout(0.5))
    assert FrozenPolicy.of(policy) is None
    policy = make().policy
    policy.mlp_extractor.value_net.append(nn.Dropout(0.5))
    assert FrozenPolicy.of(policy) is None
    assert FrozenPolicy.of(make().policy.to("meta")) is None
