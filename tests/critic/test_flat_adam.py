"""Adam on one flat vector: where it is used, where it is not, and that nobody can tell which."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn
from torch.optim import optimizer as optimizer_module

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.critic import fit as fitting
from sb3_trpo_plus.critic.flat_adam import FlatAdam, has_fused_adam
from tests.conftest import collect, random_env

CPU = th.device("cpu")


@pytest.fixture(autouse=True)
def fresh_probe() -> Iterator[None]:
    """What was found out of torch is not remembered beyond a test, which may change torch."""
    has_fused_adam.cache_clear()
    yield
    has_fused_adam.cache_clear()


def make(**kwargs: Any) -> TRPO:
    return collect(TRPO("MlpPolicy", random_env(), n_steps=96, batch_size=40, seed=0, **kwargs))


def critic_of(model: TRPO) -> list[nn.Parameter]:
    return [p for name, p in model.policy.named_parameters() if "value" in name]


def fit(model: TRPO, general: bool = False) -> fitting.CriticFit:
    """By the same minibatches, of which the last one of a pass is smaller."""
    actor = [p for name, p in model.policy.named_parameters() if "value" not in name]
    next(model.rollout_buffer.get())
    np.random.seed(0)
    if general:
        return fitting._fit_any(model.policy, critic_of(model), model.rollout_buffer, 2, 40)
    return fitting.fit_critic(model.policy, model.rollout_buffer, actor, 2, 40)


def is_flat(model: TRPO) -> bool:
    return FlatAdam.of(model.policy.optimizer, critic_of(model)) is not None


def assert_same(one: TRPO, other: TRPO, exact: bool) -> None:
    rtol, atol = (0.0, 0.0) if exact else (1e-4, 1e-6)
    for (name, value), expected in zip(one.policy.state_dict().items(), other.policy.state_dict().values(), strict=True):
        th.testing.assert_close(value, expected, rtol=rtol, atol=atol, msg=name)
    states = [model.policy.optimizer.state_dict()["state"] for model in (one, other)]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        for name, value in state.items():
            th.testing.assert_close(value, states[1][index][name], rtol=10 * rtol, atol=atol)
    start = make().policy.state_dict()
    assert any(
        value.shape == start[name].shape and not th.equal(value, start[name])
        for name, value in one.policy.state_dict().items()
    )


def _raises(*args: Any, **kwargs: Any) -> None:
    raise TypeError("unexpected keyword argument")


def _does_nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _too_fast(parameters: Any, gradients: Any, means: Any, squares: Any, *rest: Any, lr: float, **kwargs: Any) -> None:
    FUSED_ADAM(parameters, gradients, means, squares, *rest, lr=2 * lr, **kwargs)


def _other_moments(parameters: Any, gradients: Any, means: Any, squares: Any, *rest: Any, **kwargs: Any) -> None:
    FUSED_ADAM(parameters, gradients, means, squares, *rest, **kwargs)
    squares[0].mul_(2)


FUSED_ADAM = th._fused_adam_
BROKEN_KERNELS: dict[str, Callable[..., None]] = {
    "raises": _raises,
    "does nothing": _does_nothing,
    "too fast": _too_fast,
    "other moments": _other_moments,
}


def test_kernel_of_this_torch_does_what_adam_does() -> None:
    assert has_fused_adam(CPU)


@pytest.mark.parametrize("kernel", BROKEN_KERNELS)
def test_without_the_kernel_the_fit_takes_the_general_path(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, expected = make(), make()
    fit(usual)
    fit(expected, general=True)
    monkeypatch.setattr(th, "_fused_adam_", BROKEN_KERNELS[kernel])
    has_fused_adam.cache_clear()
    assert not has_fused_adam(CPU)
    model = make()
    assert not is_flat(model)
    fit(model)
    assert_same(model, expected, exact=True)
    assert_same(model, usual, exact=False)


def test_kernel_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(th, "_fused_adam_")
    assert not has_fused_adam(CPU)
    assert not is_flat(make())


def test_kernel_is_tried_once_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        FUSED_ADAM(*args, **kwargs)

    monkeypatch.setattr(th, "_fused_adam_", counted)
    assert [has_fused_adam(CPU) for _ in range(3)] == [True] * 3
    assert calls == [1]


def _without_a_layer(model: TRPO) -> None:
    """As users do who fine-tune one layer."""
    kept = [p for p in model.policy.parameters() if p is not model.policy.mlp_extractor.value_net[0].weight]
    model.policy.optimizer = th.optim.Adam(kept, lr=1e-2)


def _two_groups(model: TRPO) -> None:
    critic = critic_of(model)
    ids = {id(p) for p in critic}
    rest = [p for p in model.policy.parameters() if id(p) not in ids]
    model.policy.optimizer = th.optim.Adam([{"params": rest}, {"params": critic, "lr": 0.01}], lr=1e-3)


def _step_of_its_own(model: TRPO) -> None:
    step, optimizer = model.policy.optimizer.step, model.policy.optimizer
    optimizer.step = lambda *args, **kwargs: (optimizer.param_groups[0].update(lr=0.01), step(*args, **kwargs))


def _pre_hook(model: TRPO) -> None:
    model.policy.optimizer.register_step_pre_hook(lambda optimizer, *_: optimizer.param_groups[0].update(lr=0.01))


def _post_hook(model: TRPO) -> None:
    model.policy.optimizer.register_step_post_hook(lambda *_: model.policy.value_net.weight.data.clamp_(-0.05, 0.05))


def _clip(parameter: th.Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.clamp_(-1e-3, 1e-3)


def _post_accumulate_hook(model: TRPO) -> None:
    for parameter in critic_of(model):
        parameter.register_post_accumulate_grad_hook(_clip)


def _gradient_hook(model: TRPO) -> None:
    model.policy.value_net.weight.register_hook(lambda gradient: 0 * gradient)


CHANGES: dict[str, Callable[[TRPO], None]] = {
    "parameter outside of the optimiser": _without_a_layer,
    "groups": _two_groups,
    "step": _step_of_its_own,
    "pre-hook": _pre_hook,
    "post-hook": _post_hook,
    "post-accumulate-grad hook": _post_accumulate_hook,
    "hook on a gradient": _gradient_hook,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_adam_alone_takes_the_general_path(change: str) -> None:
    model, expected, plain = make(), make(), make()
    for one in (model, expected):
        CHANGES[change](one)
    fit(model)
    fit(expected, general=True)
    assert_same(model, expected, exact=True)
    fit(plain)
    moved = zip(plain.policy.parameters(), model.policy.parameters(), strict=True)
    assert any(not th.allclose(one, other, atol=1e-6) for one, other in moved), "the change matters"


def test_parameters_outside_of_the_optimiser_stay() -> None:
    model = make()
    before = model.policy.mlp_extractor.value_net[0].weight.detach().clone()
    _without_a_layer(model)
    fit(model)
    assert th.equal(model.policy.mlp_extractor.value_net[0].weight, before)


@pytest.mark.parametrize("register", ["register_optimizer_step_pre_hook", "register_optimizer_step_post_hook"])
def test_hooks_on_all_optimisers_are_called_at_each_step(register: str) -> None:
    calls: list[Any] = []
    model, expected = make(), make()
    with ExitStack() as stack:
        stack.callback(getattr(optimizer_module, register)(lambda optimizer, *_: calls.append(optimizer)).remove)
        fit(model)
        assert calls == [model.policy.optimizer] * 6
        calls.clear()
        fit(expected, general=True)
        assert len(calls) == 6
    assert_same(model, expected, exact=True)
    calls.clear()
    fit(model)
    assert not calls


def test_post_accumulate_grad_hooks_are_called_for_each_minibatch() -> None:
    model, seen = make(), list[float]()
    model.policy.value_net.bias.register_post_accumulate_grad_hook(lambda p: seen.append(float(p.grad)))  # type: ignore[arg-type]
    fit(model)
    assert len(seen) == 6
    assert all(np.isfinite(seen))
    assert len(set(seen)) == 6


def test_method_patched_on_the_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.optim.Adam.step`` itself, as tools that watch training do it."""
    calls, step = [], th.optim.Adam.step
    monkeypatch.setattr(th.optim.Adam, "step", lambda self, *args, **kwargs: calls.append(1) or step(self, *args, **kwargs))
    fit(make())
    assert len(calls) == 6


def test_gradients_of_the_last_minibatch_stay_on_both_paths() -> None:
    flat, general = make(), make()
    for model in (flat, general):
        for parameter in critic_of(model):
            parameter.grad = th.full_like(parameter, 7.0)
    assert is_flat(flat)
    fit(flat)
    fit(general, general=True)
    for one, other in zip(critic_of(flat), critic_of(general), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert other.grad.abs().max() > 0
        th.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)
    # They are of the last minibatch of 16: its own gradient before the last step.
    assert flat.policy.value_net.bias.grad is not flat.policy.value_net.weight.grad


def test_gradients_of_the_others_are_forgotten_on_both_paths() -> None:
    """SB3's ``zero_grad`` is of all the optimiser's parameters."""
    for general in (False, True):
        model = make()
        for parameter in model.policy.parameters():
            parameter.grad = th.ones_like(parameter)
        fit(model, general)
        critic = {id(parameter) for parameter in critic_of(model)}
        others = [parameter for parameter in model.policy.parameters() if id(parameter) not in critic]
        assert all(parameter.grad is None for parameter in others), f"general={general}"


def test_gradient_is_a_tensor_of_its_own() -> None:
    """To write into one must not write into another, nor into the optimiser's state."""
    model = make()
    fit(model)
    state = copy.deepcopy(model.policy.optimizer.state_dict()["state"])
    model.policy.value_net.weight.grad.fill_(9.0)
    assert not (model.policy.value_net.bias.grad == 9.0).any()
    after = model.policy.optimizer.state_dict()["state"]
    assert all(th.equal(value, state[i][name]) for i, of in after.items() for name, value in of.items())


@pytest.mark.parametrize("options", [{"capturable": False}, {"fused": True}, {"lr": th.tensor(1e-2)}, {"betas": (0.5, 0.9)}])
def test_state_is_where_adam_itself_looks_for_it(options: dict[str, Any]) -> None:
    """The optimiser's own step goes on from a flat fit's state."""
    models = [make(), make()]
    for model, general in zip(models, (False, True), strict=True):
        model.policy.optimizer = th.optim.Adam(model.policy.parameters(), **{"lr": 1e-2, **options})
        assert is_flat(model)
        fit(model, general)
        for parameter in model.policy.parameters():
            parameter.grad = th.ones_like(parameter)
        model.policy.optimizer.step()
    assert_same(*models, exact=False)


@pytest.mark.parametrize(
    "options", [{"amsgrad": True}, {"maximize": True}, {"differentiable": True}, {"decoupled_weight_decay": True}]
)
def test_other_kinds_of_adam_are_not_flat(options: dict[str, Any]) -> None:
    model = make()
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), **options)
    assert not is_flat(model)
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), **dict.fromkeys(options, False))
    assert is_flat(model)


class MyAdam(th.optim.Adam):
    pass


def test_derived_adams_are_not_flat() -> None:
    model = make()
    model.policy.optimizer = MyAdam(model.policy.parameters())
    assert not is_flat(model)
    model.policy.optimizer = th.optim.AdamW(model.policy.parameters())
    assert not is_flat(model)
