"""The critic's fit on one flat vector against the modules and optimisers that it stands in for."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.critic import fit as fitting
from sb3_trpo_plus.critic.flat_adam import FlatAdam
from sb3_trpo_plus.policies.plain import ELEMENTWISE, plain_critic
from tests.conftest import collect, random_env


def make(**kwargs: Any) -> TRPO:
    return collect(TRPO("MlpPolicy", random_env(), n_steps=96, batch_size=40, seed=0, **kwargs))


def fit(model: TRPO, n_epochs: int = 3, batch_size: int = 40, flat: bool = True) -> fitting.CriticFit:
    """Fit the critic, on the flat vector or the ordinary way, by the same minibatches."""
    actor = [p for name, p in model.policy.named_parameters() if "value" not in name]
    next(model.rollout_buffer.get())
    np.random.seed(0)
    if not flat:
        others = [p for name, p in model.policy.named_parameters() if "value" in name]
        return fitting._fit_any(model.policy, others, model.rollout_buffer, n_epochs, batch_size)
    return fitting.fit_critic(model.policy, model.rollout_buffer, actor, n_epochs, batch_size)


def is_flat(model: TRPO) -> bool:
    network = plain_critic(model.policy)
    return network is not None and FlatAdam.of(model.policy.optimizer, network.parameters) is not None


def assert_same_fit(one: TRPO, other: TRPO) -> None:
    start = make().policy.state_dict()
    moved = 0.0
    for (name, value), expected in zip(one.policy.state_dict().items(), other.policy.state_dict().values(), strict=True):
        th.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6, msg=name)
        moved = max(moved, (value - start[name]).abs().max().item()) if value.shape == start[name].shape else 1.0
    assert moved > 1e-3
    states = [model.policy.optimizer.state_dict() for model in (one, other)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys() != set()
    for index, state in states[0]["state"].items():
        assert state.keys() == states[1]["state"][index].keys()
        for key, value in state.items():
            expected = states[1]["state"][index][key]
            assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
            th.testing.assert_close(value, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("activation", ELEMENTWISE)
def test_flat_fit_is_that_of_modules_and_adam(activation: type[nn.Module]) -> None:
    flat, ordinary = (make(policy_kwargs={"activation_fn": activation, "net_arch": [12, 12]}) for _ in range(2))
    assert is_flat(flat)
    for _ in range(2):  # the second fit goes on from the optimiser's state
        found, expected = fit(flat), fit(ordinary, flat=False)
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
        assert found.stopped is expected.stopped is None
    assert_same_fit(flat, ordinary)


@pytest.mark.parametrize(
    "optimizer_kwargs", [{}, {"eps": 1e-3}, {"betas": (0.5, 0.9)}, {"weight_decay": 0.1}, {"fused": True}, {"foreach": True}]
)
def test_adams_settings_are_kept(optimizer_kwargs: dict[str, Any]) -> None:
    flat, ordinary = (make(policy_kwargs={"optimizer_kwargs": optimizer_kwargs}) for _ in range(2))
    assert is_flat(flat)
    fit(flat)
    fit(ordinary, flat=False)
    assert_same_fit(flat, ordinary)


def test_flat_and_ordinary_fits_can_follow_each_other() -> None:
    one, other = make(), make()
    for flat in (True, False, True):
        fit(one, flat=flat)
        fit(other, flat=not flat)
    assert_same_fit(one, other)


class MyAdam(th.optim.Adam):
    pass


@pytest.mark.parametrize(
    ("optimizer_class", "optimizer_kwargs"),
    [
        (th.optim.SGD, {}), (th.optim.AdamW, {}), (th.optim.RMSprop, {}), (RMSpropTFLike, {}), (MyAdam, {}),
        (th.optim.Adam, {"amsgrad": True}), (th.optim.Adam, {"maximize": True}),
    ],
)  # fmt: skip
def test_other_optimisers_take_the_ordinary_way(optimizer_class: Any, optimizer_kwargs: dict[str, Any]) -> None:
    kwargs = {"optimizer_class": optimizer_class, "optimizer_kwargs": optimizer_kwargs}
    model, expected = make(policy_kwargs=kwargs), make(policy_kwargs=kwargs)
    assert not is_flat(model)
    assert fit(model) == fit(expected, flat=False)
    for (name, value), other in zip(model.policy.state_dict().items(), expected.policy.state_dict().values(), strict=True):
        assert th.equal(value, other), name


def test_hooks_and_patched_steps_are_called() -> None:
    model, calls = make(), []
    handle = model.policy.optimizer.register_step_post_hook(lambda *args: calls.append(1))
    fit(model, 1, 96)
    assert calls == [1]
    handle.remove()
    assert is_flat(model)
    th.optim.lr_scheduler.ExponentialLR(model.policy.optimizer, 0.9)
    assert not is_flat(model)


def test_parameters_at_different_steps_take_the_ordinary_way() -> None:
    model = make()
    fit(model)
    model.policy.optimizer.state[model.policy.value_net.bias]["step"] += 1
    assert not is_flat(model)


def test_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """The optimiser's state goes through a saved file."""
    straight, saved = make(), make()
    fit(straight)
    fit(saved)
    saved.save(tmp_path / "model.zip")
    loaded = TRPO.load(tmp_path / "model.zip", env=random_env())
    loaded.rollout_buffer = copy.deepcopy(straight.rollout_buffer)
    fit(straight)
    fit(loaded)
    assert_same_fit(loaded, straight)


def test_last_minibatch_may_be_a_single_sample() -> None:
    flat, ordinary = make(), make()
    fit(flat, batch_size=95)
    fit(ordinary, batch_size=95, flat=False)
    assert_same_fit(flat, ordinary)


def test_buffer_that_nobody_has_drawn_from_yet() -> None:
    """Its arrays still have a dimension for the environments."""
    models = []
    for flat in (True, False):
        env = make_vec_env(random_env, 3, seed=0)
        model = collect(TRPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0))
        critics = [p for name, p in model.policy.named_parameters() if "value" in name]
        actor = [p for name, p in model.policy.named_parameters() if "value" not in name]
        np.random.seed(0)
        if flat:
            fitting.fit_critic(model.policy, model.rollout_buffer, actor, 2, 32)
        else:
            fitting._fit_any(model.policy, critics, model.rollout_buffer, 2, 32)
        models.append(model)
    for one, other in zip(*(model.policy.parameters() for model in models), strict=True):
        th.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def spoil(model: TRPO, minibatch: int) -> None:
    """Let this minibatch of the first pass have an infinite loss."""
    order = np.random.RandomState(0).permutation(96)
    next(model.rollout_buffer.get())
    model.rollout_buffer.returns[order[40 * minibatch]] = 1e30


def test_fit_that_breaks_off_keeps_what_was_done_before() -> None:
    """The third of its minibatches has an infinite loss."""
    model, expected = make(), make()
    for one, flat in ((model, True), (expected, False)):
        spoil(one, 2)
        found = fit(one, n_epochs=1, flat=flat)
        assert found.stopped is not None
        assert "a minibatch has loss inf" in found.stopped
        assert found.loss is not None
        assert found.loss < 1e3, "the mean is of those before"
    assert_same_fit(model, expected)
    assert float(model.policy.optimizer.state[model.policy.value_net.bias]["step"]) == 2
    assert all(parameter.grad is None for parameter in model.policy.parameters())


@pytest.mark.parametrize("flat", [True, False])
def test_fit_whose_first_minibatch_is_broken_changes_nothing(flat: bool) -> None:
    model = make()
    fit(model, flat=flat)
    before = copy.deepcopy(model.policy.state_dict()), copy.deepcopy(model.policy.optimizer.state_dict())
    spoil(model, 0)
    found = fit(model, flat=flat)
    assert found.loss is None
    assert found.stopped is not None
    assert all(th.equal(value, before[0][name]) for name, value in model.policy.state_dict().items())
    after = model.policy.optimizer.state_dict()["state"]
    assert all(th.equal(value, before[1]["state"][i][name]) for i, of in after.items() for name, value in of.items())
    critic = [p for name, p in model.policy.named_parameters() if "value" in name]
    assert all(parameter.grad is None for parameter in critic), "an older minibatch's gradient is not this one's"


@pytest.mark.parametrize(("n_epochs", "expected"), [(0, fitting.CriticFit(None))])
def test_fit_without_a_step_says_so(n_epochs: int, expected: fitting.CriticFit) -> None:
    assert fit(make(), n_epochs) == expected == fit(make(), n_epochs, flat=False)
    model = make()
    everything = list(model.policy.parameters())
    assert fitting.fit_critic(model.policy, model.rollout_buffer, everything, 3, 40) == expected


def test_broken_fit_is_a_warning_and_a_count() -> None:
    model = make()
    spoil(model, 0)
    with pytest.warns(UserWarning, match="critic's fit stopped early: a minibatch has loss inf"):
        model._fit_critic([p for name, p in model.policy.named_parameters() if "value" not in name])
    assert model._skips.counts == {"critic_fit": 1}


@pytest.mark.parametrize("rate", [1e38, float("inf")])
@pytest.mark.parametrize("minibatches", [1, 2, 3])
@pytest.mark.parametrize("flat", [True, False])
def test_fit_whose_critic_would_not_be_finite_is_undone(flat: bool, minibatches: int, rate: float) -> None:
    """The rate of the optimiser is what a callback has made of it, after the schedule's was looked at."""
    model = make()
    fit(model, flat=flat)
    before = copy.deepcopy(model.policy.state_dict()), copy.deepcopy(model.policy.optimizer.state_dict()["state"])
    model.policy.optimizer.param_groups[0]["lr"] = rate
    found = fit(model, n_epochs=1, batch_size=96 // minibatches, flat=flat)
    assert found == fitting.CriticFit(None, fitting.NOT_USABLE)
    assert all(th.equal(value, before[0][name]) for name, value in model.policy.state_dict().items())
    after = model.policy.optimizer.state_dict()["state"]
    assert after.keys() == before[1].keys()
    assert all(th.equal(value, before[1][i][name]) for i, of in after.items() for name, value in of.items())
    assert all(parameter.grad is None for parameter in model.policy.parameters())
    model.policy.optimizer.param_groups[0]["lr"] = 1e-3
    assert fit(model, flat=flat).stopped is None


@pytest.mark.parametrize("flat", [True, False])
def test_fit_that_would_spoil_adams_averages_is_undone(flat: bool) -> None:
    """The gradient is finite and its square is not: Adam would not move for good."""
    model = make()
    fit(model, flat=flat)
    before = copy.deepcopy(model.policy.state_dict())
    next(model.rollout_buffer.get())
    model.rollout_buffer.returns[:] = 1.2e19
    found = fit(model, n_epochs=1, batch_size=96, flat=flat)
    assert found.stopped is not None
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert all(state["exp_avg_sq"].isfinite().all() for state in model.policy.optimizer.state.values())
