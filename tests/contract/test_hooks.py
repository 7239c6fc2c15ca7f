"""Hooks: on modules, on all modules, on parameters and on optimisers, they are called and what they return is used."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn
from torch.optim import optimizer

from sb3_trpo_plus import PPOPenalty, VineTRPO
from tests.contract.programs import (
    NO_CRITIC,
    NOT_DIRECTION,
    OTHER_SAMPLE,
    Algorithm,
    assert_at_least,
    assert_same_direction,
    contract,
    direction,
    envs,
    learn,
    make,
    rollout,
)

OTHER_MINIBATCHES = {VineTRPO: NO_CRITIC, PPOPenalty: "its updates draw other minibatches before the critic's"}
MODULES: dict[str, Callable[[Any], nn.Module]] = {
    "policy": lambda policy: policy,
    "features extractor": lambda policy: policy.features_extractor,
    "mlp_extractor": lambda policy: policy.mlp_extractor,
    "policy_net": lambda policy: policy.mlp_extractor.policy_net,
    "hidden layer": lambda policy: policy.mlp_extractor.policy_net[0],
    "activation": lambda policy: policy.mlp_extractor.policy_net[1],
    "action_net": lambda policy: policy.action_net,
    "value_net": lambda policy: policy.value_net,
    "critic's hidden layer": lambda policy: policy.mlp_extractor.value_net[0],
}
# SB3 calls forward_actor and forward_critic of it after a rollout and in updates, past its hooks.
COMPUTING = [name for name in MODULES if name not in ("policy", "mlp_extractor")]


def calls_in_rollout(model: Any, calls: list[Any]) -> int:
    """How often a hook was called in the steps of a rollout."""
    counts: list[int] = []
    learn(model, step=lambda callback: counts.append(len(calls)))
    return counts[-1] - counts[0]


def registered(algorithm: Algorithm, name: str, register: str, hook: Callable[..., Any], **kwargs: Any) -> Any:
    model = make(algorithm, **kwargs)
    getattr(MODULES[name](model.policy), register)(hook)
    return model


@pytest.mark.parametrize("name", MODULES)
@contract()
def test_forward_hook_is_called_at_each_step(algorithm: Algorithm, name: str) -> Any:
    """``register_forward_hook``: as often as in SB3 while collecting."""
    calls: list[int] = []
    model = registered(algorithm, name, "register_forward_hook", lambda *_: calls.append(1))
    return calls_in_rollout(model, calls)


@pytest.mark.parametrize("name", ["policy", "hidden layer", "action_net", "value_net"])
@contract()
def test_forward_pre_hook_is_called_at_each_step(algorithm: Algorithm, name: str) -> Any:
    """``register_forward_pre_hook``: as often as in SB3 while collecting."""
    calls: list[int] = []
    model = registered(algorithm, name, "register_forward_pre_hook", lambda *_: calls.append(1))
    return calls_in_rollout(model, calls)


@pytest.mark.parametrize("name", COMPUTING)
@contract()
def test_forward_hook_changes_the_output(algorithm: Algorithm, name: str) -> Any:
    """What a forward hook returns is the output."""
    return rollout(registered(algorithm, name, "register_forward_hook", lambda module, inputs, output: 2 * output))


@pytest.mark.parametrize("name", ["hidden layer", "activation", "action_net", "value_net"])
@contract()
def test_forward_pre_hook_changes_the_input(algorithm: Algorithm, name: str) -> Any:
    """What a forward-pre hook returns is the input."""
    return rollout(registered(algorithm, name, "register_forward_pre_hook", lambda module, inputs: (2 * inputs[0],)))


@pytest.mark.parametrize("name", ["hidden layer", "activation", "action_net"])
@contract(without=NOT_DIRECTION, compare=assert_same_direction)
def test_step_with_a_forward_hook(algorithm: Algorithm, name: str) -> Any:
    """The direction of the update's step through a hooked layer."""
    hook = lambda module, inputs, output: 2 * output  # noqa: E731
    return direction(registered(algorithm, name, "register_forward_hook", hook, n_critic_updates=0))


@contract()
def test_hook_on_the_policy_sees_what_forward_returns(algorithm: Algorithm) -> Any:
    """A forward hook of the policy gets actions, values and log-probabilities."""
    outputs: list[Any] = []
    rollout(registered(algorithm, "policy", "register_forward_hook", lambda module, inputs, output: outputs.append(output)))
    return outputs


@pytest.mark.parametrize("name", ["hidden layer", "action_net"])
@contract()
def test_backward_hook_of_the_actor_is_called(algorithm: Algorithm, name: str) -> Any:
    """``register_full_backward_hook`` sees gradients of the right shape in the policy's update."""
    shapes: set[tuple[int, ...]] = set()
    hook = lambda module, inputs, outputs: shapes.add(tuple(outputs[0].shape[1:]))  # noqa: E731
    learn(registered(algorithm, name, "register_full_backward_hook", hook))
    return shapes


@pytest.mark.parametrize("name", ["value_net", "critic's hidden layer"])
@contract(without=OTHER_MINIBATCHES)
def test_backward_hook_of_the_critic_is_called(algorithm: Algorithm, name: str) -> Any:
    """``register_full_backward_hook`` is called for each of the critic's minibatches."""
    shapes: list[tuple[int, ...]] = []
    hook = lambda module, inputs, outputs: shapes.append(tuple(outputs[0].shape))  # noqa: E731
    learn(registered(algorithm, name, "register_full_backward_hook", hook))
    return [shape for shape in shapes if shape[0] == 32]


GLOBAL: dict[str, Callable[..., Any]] = {
    "forward": nn.modules.module.register_module_forward_hook,
    "forward pre": nn.modules.module.register_module_forward_pre_hook,
}


@contextmanager
def on_all_modules(register: Callable[..., Any], hook: Callable[..., Any]) -> Iterator[None]:
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", GLOBAL)
@contract()
def test_hook_on_all_modules_is_called(algorithm: Algorithm, kind: str) -> Any:
    """``torch.nn.modules.module.register_module_forward_hook`` and its like: as often as in SB3 while collecting."""
    calls: list[int] = []
    model = make(algorithm)
    with on_all_modules(GLOBAL[kind], lambda module, *_: calls.append(1) if isinstance(module, nn.Linear) else None):
        return calls_in_rollout(model, calls)


@contract()
def test_hook_on_all_modules_changes_the_output(algorithm: Algorithm) -> Any:
    """What a global forward hook returns is the output."""

    def double(module: nn.Module, inputs: Any, output: Any) -> Any:
        return 2 * output if isinstance(module, nn.Linear) else None

    model = make(algorithm)
    with on_all_modules(GLOBAL["forward"], double):
        return rollout(model)


@contract(without={VineTRPO: NO_CRITIC}, compare=assert_at_least)
def test_backward_hook_on_all_modules_is_called(algorithm: Algorithm) -> Any:
    """``register_module_full_backward_hook`` is called for the layers of the actor and of the critic."""
    model, layers = make(algorithm), set[str]()
    names = {module: name for name, module in model.policy.named_modules() if isinstance(module, nn.Linear)}

    def note(module: nn.Module, *_: Any) -> None:
        layers.update({names[module]} if module in names else {})

    with on_all_modules(nn.modules.module.register_module_full_backward_hook, note):
        learn(model)
    return layers


@contract()
def test_removed_hook_is_not_called(algorithm: Algorithm) -> Any:
    """A hook that is taken away changes nothing."""
    model = make(algorithm)
    model.policy.action_net.register_forward_hook(lambda module, inputs, output: 2 * output).remove()
    return rollout(model)


def mask(gradient: th.Tensor) -> th.Tensor:
    masked = gradient.clone()
    masked[: len(masked) // 2] = 0
    return masked


@pytest.mark.parametrize("name", ["mlp_extractor.policy_net.0.weight", "action_net.bias", "log_std"])
@contract(compare=assert_at_least)
def test_masked_parameter_of_the_actor_stays(algorithm: Algorithm, name: str) -> Any:
    """A tensor hook that zeroes the gradient of a part of a parameter: that part stays as it is, the rest moves."""
    model = make(algorithm)
    parameter = dict(model.policy.named_parameters())[name]
    parameter.register_hook(mask)
    return _moved_halves(model, parameter)


@pytest.mark.parametrize("name", ["mlp_extractor.value_net.0.weight", "value_net.weight"])
@contract(without={VineTRPO: NO_CRITIC}, compare=assert_at_least)
def test_masked_parameter_of_the_critic_stays(algorithm: Algorithm, name: str) -> Any:
    """The same in the critic's fit."""
    model = make(algorithm, policy_kwargs={"net_arch": [8, 8]})
    parameter = dict(model.policy.named_parameters())[name]
    parameter.register_hook(lambda gradient: mask(gradient.flatten()).view_as(gradient))
    return _moved_halves(model, parameter)


def _moved_halves(model: Any, parameter: nn.Parameter) -> set[str]:
    before = parameter.detach().clone().flatten()
    learn(model)
    # sb3-contrib's conjugate gradients leave rounding errors of 1e-9 in the masked half.
    moved = ((parameter.detach().flatten() - before).abs() > 1e-7).tolist()
    half = len(parameter) // 2 * (parameter.numel() // len(parameter)) if len(parameter) > 1 else len(moved) // 2
    assert not any(moved[:half])
    return {"the rest"} if all(moved[half:]) else set()


@pytest.mark.parametrize("name", ["zero", "mask"])
@contract(without=NOT_DIRECTION, compare=assert_same_direction)
def test_step_with_a_hook_on_a_parameter(algorithm: Algorithm, name: str) -> Any:
    """The direction of the update's step where a layer's gradient is masked: the Fisher products are, too."""
    model = make(algorithm, n_critic_updates=0)
    model.policy.action_net.weight.register_hook(mask if name == "mask" else lambda gradient: 0 * gradient)
    return direction(model)


@contract(without=OTHER_MINIBATCHES)
def test_clipped_parameters_of_the_critic(algorithm: Algorithm) -> Any:
    """Hooks that clip the gradients: the critic after plain gradient steps is the one that SB3 ends with."""
    options = {"net_arch": [8], "optimizer_class": th.optim.SGD}
    model = make(algorithm, learning_rate=0.1, policy_kwargs=options)
    for parameter in model.policy.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    return critic_after(model)


@contract(without=OTHER_MINIBATCHES)
def test_clipped_parameters_of_the_critic_with_adam(algorithm: Algorithm) -> Any:
    """The same with SB3's own optimiser, whose epsilon is made large so that the size of gradients counts."""
    model = make(algorithm, learning_rate=0.1, policy_kwargs={"net_arch": [8], "optimizer_kwargs": {"eps": 0.1}})
    for parameter in model.policy.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    return critic_after(model)


def critic_after(model: Any) -> Any:
    learn(model)
    observations = th.as_tensor(np.random.default_rng(0).normal(size=(20, 4)), dtype=th.float32)
    with th.no_grad():
        return model.policy.predict_values(observations).round(decimals=3)


@contract(without=OTHER_MINIBATCHES)
def test_hook_on_the_critics_parameters_is_called(algorithm: Algorithm) -> Any:
    """A tensor hook that only looks, as wandb's ``watch``: once for each minibatch."""
    model, calls = make(algorithm), list[int]()
    model.policy.value_net.weight.register_hook(lambda gradient: calls.append(1))
    learn(model)
    return len(calls)


@contract()
def test_hook_on_the_actors_parameters_is_called(algorithm: Algorithm) -> Any:
    """The same for the actor: at least once an update."""
    model, calls = make(algorithm), list[int]()
    model.policy.action_net.weight.register_hook(lambda gradient: calls.append(1))
    learn(model)
    return len(calls) > 0


@contract(without=OTHER_MINIBATCHES)
def test_post_accumulate_hook_of_the_critic(algorithm: Algorithm) -> Any:
    """``register_post_accumulate_grad_hook``: once for each minibatch, with the gradient in place."""
    model, calls = make(algorithm), list[bool]()
    model.policy.value_net.weight.register_post_accumulate_grad_hook(lambda p: calls.append(p.grad is not None))
    learn(model)
    return calls


@contract(without=OTHER_MINIBATCHES)
def test_post_accumulate_hook_that_clips(algorithm: Algorithm) -> Any:
    """A hook that changes ``parameter.grad`` in place before the optimiser's step."""
    model = make(algorithm, learning_rate=0.1, policy_kwargs={"net_arch": [8], "optimizer_class": th.optim.SGD})
    for parameter in model.policy.parameters():
        parameter.register_post_accumulate_grad_hook(_clip)
    return critic_after(model)


def _clip(parameter: th.Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.clamp_(-0.01, 0.01)


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
@contract(without={VineTRPO: NO_CRITIC}, compare=assert_at_least)
def test_hook_of_the_optimizer_is_called(algorithm: Algorithm, register: str) -> Any:
    """Once for each step; PPOPenalty's policy takes steps of it, too."""
    model, calls = make(algorithm), list[int]()
    getattr(model.policy.optimizer, register)(lambda *_: calls.append(1))
    learn(model)
    return len(calls)


@pytest.mark.parametrize("name", ["register_optimizer_step_pre_hook", "register_optimizer_step_post_hook"])
@contract(without={VineTRPO: NO_CRITIC}, compare=assert_at_least)
def test_hook_of_all_optimizers_is_called(algorithm: Algorithm, name: str) -> Any:
    """``torch.optim.optimizer.register_optimizer_step_post_hook``: once for each step."""
    calls: list[int] = []
    model = make(algorithm)
    with on_all_modules(getattr(optimizer, name), lambda *_: calls.append(1)):
        learn(model)
    return len(calls)


@contract(without={VineTRPO: NO_CRITIC}, compare=assert_at_least)
def test_patched_step_of_the_optimizer_is_called(algorithm: Algorithm) -> Any:
    """``optimizer.step = ...`` on the instance, as torch's schedulers and gradient scalers do."""
    model, calls = make(algorithm), list[int]()
    step = model.policy.optimizer.step

    def patched(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return step(*args, **kwargs)

    model.policy.optimizer.step = patched
    learn(model)
    return len(calls)


@contract(without=OTHER_MINIBATCHES)
def test_scheduler_of_torch(algorithm: Algorithm) -> Any:
    """A learning-rate scheduler of torch's on the policy's optimiser is no obstacle."""
    model = make(algorithm, learning_rate=0.01)
    th.optim.lr_scheduler.StepLR(model.policy.optimizer, 1)
    return critic_after(model)


@contract(without=OTHER_MINIBATCHES)
def test_groups_of_the_optimizer(algorithm: Algorithm) -> Any:
    """Parameter groups with settings of their own: here the critic's head does not decay and its body does."""
    model = make(algorithm, learning_rate=0.01)
    policy = model.policy
    body = [p for name, p in policy.named_parameters() if not name.startswith("value_net")]
    policy.optimizer = th.optim.Adam(
        [{"params": body, "weight_decay": 5.0}, {"params": policy.value_net.parameters()}], lr=0.01
    )
    return critic_after(model)


@contract(without=OTHER_MINIBATCHES)
def test_replaced_optimizer_is_the_one_used(algorithm: Algorithm) -> Any:
    """``policy.optimizer = ...``: the user's."""
    model = make(algorithm, learning_rate=0.05)
    model.policy.optimizer = th.optim.SGD(model.policy.parameters(), lr=0.05)
    return critic_after(model)


@contract(without={VineTRPO: NO_CRITIC})
def test_gradients_can_be_looked_at_after_the_update(algorithm: Algorithm) -> Any:
    """``parameter.grad`` of the critic's last minibatch, as callbacks that log gradient norms read it."""
    model = make(algorithm)
    learn(model)
    return [model.policy.value_net.weight.grad is not None, model.policy.mlp_extractor.value_net[0].bias.grad is not None]


@contract(without=NOT_DIRECTION, compare=assert_same_direction)
def test_step_with_hooked_log_std(algorithm: Algorithm) -> Any:
    """A hook that keeps the exploration where it is."""
    model = make(algorithm, n_critic_updates=0)
    model.policy.log_std.register_hook(lambda gradient: 0 * gradient)
    return direction(model)


@contract(without={VineTRPO: OTHER_SAMPLE})
def test_hook_sees_the_whole_rollout(algorithm: Algorithm) -> Any:
    """A forward hook of the action net is called with all observations at once in the update."""
    sizes: set[int] = set()
    learn(registered(algorithm, "action_net", "register_forward_hook", lambda module, inputs, output: sizes.add(len(output))))
    return 64 in sizes


@contract()
def test_activations_are_recorded_by_a_hook(algorithm: Algorithm) -> Any:
    """A hook that keeps activations while collecting: those of SB3, step by step."""
    kept: list[Any] = []
    model = make(algorithm, env=envs("discrete"))
    model.policy.mlp_extractor.policy_net[1].register_forward_hook(
        lambda module, inputs, output: kept.append(output.detach().clone())
    )
    counts = learn(model, step=lambda callback: len(kept))
    return [activation for activation in kept[: counts[-1]] if len(activation) == 2]


@contract()
def test_state_dict_hook_is_called_when_saving(algorithm: Algorithm) -> Any:
    """A hook on ``state_dict`` of a submodule."""
    model, calls = make(algorithm), list[str]()
    model.policy.action_net.register_state_dict_post_hook(lambda module, state, prefix, metadata: calls.append(prefix))
    model.save(io.BytesIO())
    return calls
