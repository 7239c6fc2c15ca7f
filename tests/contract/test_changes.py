"""What a callback changes in the middle of a rollout acts from the next step on; the buffer knows who acted at each step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_trpo_plus import VineTRPO
from tests.contract.programs import Algorithm, Episodes, Looking, contract, envs, make, rollout

CHANGE_AT = 10


def changed(algorithm: Algorithm, change: Callable[[Any], Any], space: str = "box", **kwargs: Any) -> Any:
    """The buffer of a rollout in which the model is changed at one step."""

    def at_step(callback: Looking) -> None:
        if callback.step == CHANGE_AT:
            change(callback.model)

    found = rollout(make(algorithm, env=envs(space), **kwargs), step=at_step)
    # The first of a column says that the collection was the same before, the others that it is the same after.
    assert len(found["actions"]) > CHANGE_AT + 5
    return found


def other_weights(model: Any) -> dict[str, th.Tensor]:
    generator = th.Generator().manual_seed(5)
    return {name: th.randn(value.shape, generator=generator) / 3 for name, value in model.policy.state_dict().items()}


def _under_no_grad(write: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def change(model: Any) -> None:
        with th.no_grad():
            write(model.policy)

    return change


def _numpy_view(policy: Any) -> None:
    policy.action_net.bias.detach().numpy()[...] = 0.7


def _data(policy: Any) -> None:
    policy.action_net.bias.data = th.full_like(policy.action_net.bias, 0.7)


def _data_in_place(policy: Any) -> None:
    policy.action_net.bias.data[...] = 0.7


def _hidden_data_in_place(policy: Any) -> None:
    policy.mlp_extractor.policy_net[0].weight.data[...] *= -2


def _one_number(policy: Any) -> None:
    policy.mlp_extractor.policy_net[0].weight.data[3, 2] = 5.0


def _swapped_by_storage(policy: Any) -> None:
    policy.action_net.bias.set_(th.full_like(policy.action_net.bias, 0.7))


def _parameter_replaced(policy: Any) -> None:
    policy.action_net.weight = nn.Parameter(th.ones_like(policy.action_net.weight))


WRITES: dict[str, Callable[[Any], Any]] = {
    "fill_": lambda policy: policy.action_net.bias.fill_(0.7),
    "copy_": lambda policy: policy.action_net.weight.copy_(th.ones_like(policy.action_net.weight)),
    "data": _data,
    "data in place": _data_in_place,
    "hidden layer": _hidden_data_in_place,
    "one number": _one_number,
    "numpy view": _numpy_view,
    "set_": _swapped_by_storage,
    "new parameter": _parameter_replaced,
    "value net": lambda policy: policy.value_net.bias.fill_(3.0),
    "value net by data": lambda policy: policy.mlp_extractor.value_net[0].weight.data.mul_(-2),
}


@pytest.mark.parametrize("write", WRITES)
@contract()
def test_weight_is_written(algorithm: Algorithm, write: str) -> Any:
    """By a method in place, through ``.data``, a view of NumPy, or as a new parameter."""
    return changed(algorithm, _under_no_grad(WRITES[write]))


@pytest.mark.parametrize("space", ["discrete", "multi_discrete", "multi_binary"])
@contract()
def test_weight_is_written_for_other_actions(algorithm: Algorithm, space: str) -> Any:
    """The same for actions that are no Box."""
    return changed(algorithm, _under_no_grad(_hidden_data_in_place), space)


@pytest.mark.parametrize("how", ["fill_", "data", "data in place", "new parameter"])
@contract()
def test_log_std_is_set(algorithm: Algorithm, how: str) -> Any:
    """A schedule of the exploration that writes ``policy.log_std`` in `_on_step`."""

    def write(policy: Any) -> None:
        if how == "fill_":
            policy.log_std.fill_(-3.0)
        elif how == "data":
            policy.log_std.data = th.full_like(policy.log_std, -3.0)
        elif how == "data in place":
            policy.log_std.data[...] = -3.0
        else:
            policy.log_std = nn.Parameter(th.full_like(policy.log_std, -3.0))

    return changed(algorithm, _under_no_grad(write))


@contract()
def test_log_std_falls_at_each_step(algorithm: Algorithm) -> Any:
    """A change after every step, each with its own log-probabilities."""

    def anneal(callback: Looking) -> None:
        callback.model.policy.log_std.data.sub_(0.05)

    return rollout(make(algorithm), step=anneal)


@contract()
def test_weights_are_loaded(algorithm: Algorithm) -> Any:
    """``policy.load_state_dict`` in `_on_step`."""
    return changed(algorithm, lambda model: model.policy.load_state_dict(other_weights(model)))


@contract()
def test_parameters_are_set(algorithm: Algorithm) -> Any:
    """``model.set_parameters`` in `_on_step`."""
    return changed(algorithm, lambda model: model.set_parameters({"policy": other_weights(model)}, exact_match=False))


@contract()
def test_vector_is_loaded(algorithm: Algorithm) -> Any:
    """``policy.load_from_vector`` in `_on_step`, as evolution strategies use it."""
    return changed(
        algorithm, lambda model: model.policy.load_from_vector(np.linspace(-1, 1, len(model.policy.parameters_to_vector())))
    )


@contract()
def test_layer_is_swapped(algorithm: Algorithm) -> Any:
    """Another module in the place of ``policy.action_net``."""

    def swap(model: Any) -> None:
        th.manual_seed(3)
        model.policy.action_net = nn.Linear(8, 3)

    return changed(algorithm, swap)


@contract()
def test_hidden_layer_is_swapped(algorithm: Algorithm) -> Any:
    """Another activation in the place of one in ``policy.mlp_extractor.policy_net``."""

    def swap(model: Any) -> None:
        model.policy.mlp_extractor.policy_net[1] = nn.Softplus()

    return changed(algorithm, swap)


@contract()
def test_critics_layer_is_swapped(algorithm: Algorithm) -> Any:
    """Another module in the place of ``policy.value_net``: values of the steps before are the former's."""

    def swap(model: Any) -> None:
        th.manual_seed(3)
        model.policy.value_net = nn.Linear(8, 1)

    return changed(algorithm, swap)


@contract()
def test_hook_is_registered(algorithm: Algorithm) -> Any:
    """A forward hook that comes in the middle of a rollout changes the outputs from then on."""
    return changed(algorithm, lambda it: it.policy.action_net.register_forward_hook(lambda module, inputs, output: 2 * output))


@contract()
def test_forward_is_patched(algorithm: Algorithm) -> Any:
    """A ``forward`` patched on the policy in the middle of a rollout is called from then on."""
    calls: list[int] = []

    def patch(model: Any) -> None:
        forward = model.policy.forward

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return forward(*args, **kwargs)

        model.policy.forward = counted

    return changed(algorithm, patch), len(calls)


@contract()
def test_noise_matrix_is_drawn_anew(algorithm: Algorithm) -> Any:
    """gSDE's ``policy.reset_noise`` in `_on_step`."""
    return changed(algorithm, lambda model: model.policy.reset_noise(2), use_sde=True)


@contract()
def test_noise_scale_of_gsde_is_set(algorithm: Algorithm) -> Any:
    """``log_std`` of gSDE in `_on_step`: in the log-probabilities at once, in the actions from the next matrix on."""
    change = _under_no_grad(lambda policy: policy.log_std.fill_(-1.0))
    return changed(algorithm, change, use_sde=True, sde_sample_freq=4)


@contract()
def test_random_numbers_are_drawn(algorithm: Algorithm) -> Any:
    """A callback that draws torch's random numbers leaves the same ones to the next action as in SB3."""

    def draw(callback: Looking) -> None:
        th.rand(3)

    return rollout(make(algorithm), step=draw)


@contract()
def test_seed_is_set(algorithm: Algorithm) -> Any:
    """``torch.manual_seed`` in `_on_step` makes the next action that of this seed."""
    return changed(algorithm, lambda model: th.manual_seed(11))


@contract()
def test_generator_is_kept_from_the_callback(algorithm: Algorithm) -> Any:
    """A random number drawn in the callback is the one that SB3's generator would give there."""
    drawn: list[Any] = []
    rollout(make(algorithm), step=lambda callback: drawn.append(th.rand(2)))
    return drawn


@contract()
def test_environment_is_changed(algorithm: Algorithm) -> Any:
    """``training_env.set_attr`` and ``env_method`` in `_on_step`, as curricula do."""

    def cut(callback: Looking) -> None:
        if callback.step == CHANGE_AT:
            callback.training_env.env_method("reset", seed=9)

    return rollout(make(algorithm), step=cut)


@contract()
def test_model_stays_in_evaluation_mode(algorithm: Algorithm) -> Any:
    """The policy is in evaluation mode while collecting."""
    modes: list[bool] = []
    rollout(make(algorithm), step=lambda callback: modes.append(callback.model.policy.training))
    return modes


PROBES = np.array([[0.5, -1.0, 0.3, 1.5], [-2.0, 0.0, 1.0, 0.1], [1.0, 1.0, -1.0, -0.5]], dtype=np.float32)


@pytest.mark.parametrize("space", ["box", "discrete", "multi_discrete", "multi_binary"])
@contract(without={VineTRPO: "its update draws random numbers for the branches"})
def test_policy_is_used_on_other_states(algorithm: Algorithm, space: str) -> Any:
    """``predict``, ``forward``, ``evaluate_actions`` and ``get_distribution`` in `_on_step`, on states of the user's."""
    found = []

    def use(callback: Looking) -> None:
        model, probes = callback.model, th.as_tensor(PROBES)
        with th.no_grad():
            found.append(model.predict(PROBES)[0])
            actions, values, log_probs = model.policy(probes)
            found.extend([actions.numpy(), values.numpy(), log_probs.numpy()])
            found.append(model.policy.evaluate_actions(probes, actions)[1].numpy())
            found.append(model.policy.get_distribution(probes).mode().numpy())

    buffer = rollout(make(algorithm, env=envs(space)), step=use)
    return found, buffer


class Drawing(Episodes):
    """Draws torch's random numbers in each step."""

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return (observation + 0.1 * th.randn(len(observation)).numpy(), *rest)


@contract(without={VineTRPO: "its branches draw as well"})
def test_environment_draws_random_numbers_of_torch(algorithm: Algorithm) -> Any:
    """An environment that is made with torch: the same actions of the same seed, in each rollout."""
    model, found = make(algorithm, env=envs(env_class=Drawing)), []
    model.train = lambda: None
    model.learn(3 * model.n_steps * model.n_envs, callback=None)
    for _ in range(2):
        model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False)
        found.append(model.rollout_buffer.actions.copy())
    return found
