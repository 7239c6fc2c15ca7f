"""Closed forms for plain MLPs against autograd, in float64."""

import copy
from itertools import pairwise

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_trpo_plus.policies.plain import ELEMENTWISE
from sb3_trpo_plus.trust_region.flat import flatten, unflatten
from sb3_trpo_plus.trust_region.mlp import Mlp, MlpJacobian, MlpRegression

SIZES = {"sizes": st.lists(st.integers(1, 5), min_size=2, max_size=5), "seed": st.integers(0, 2**31 - 1)}


def make(sizes: list[int], activation: type[nn.Module], seed: int) -> tuple[Mlp, nn.Sequential, th.Tensor]:
    """The network in both forms, and inputs."""
    th.manual_seed(seed)
    layers = [nn.Linear(n, m).double() for n, m in pairwise(sizes)]
    activations = [activation() for _ in layers[1:]]
    modules = [layers[0], *(module for pair in zip(activations, layers[1:], strict=True) for module in pair)]
    return Mlp(layers, activations), nn.Sequential(*modules), th.randn(6, sizes[0], dtype=th.float64)


def jacobian_of(network: Mlp, module: nn.Sequential, inputs: th.Tensor) -> th.Tensor:
    """Shape (states * outputs, parameters)."""
    names = [name for name, _ in module.named_parameters()]

    def outputs(flat: th.Tensor) -> th.Tensor:
        values = dict(zip(names, unflatten(flat, network.parameters), strict=True))
        return th.func.functional_call(module, values, (inputs,)).flatten()

    return th.autograd.functional.jacobian(outputs, flatten([p.detach() for p in network.parameters]))


@pytest.mark.parametrize("activation", ELEMENTWISE)
@settings(max_examples=10, deadline=None)
@given(**SIZES)
def test_products_with_the_jacobian_are_those_of_the_explicit_one(
    activation: type[nn.Module], sizes: list[int], seed: int
) -> None:
    network, module, inputs = make(sizes, activation, seed)
    explicit = jacobian_of(network, module, inputs)
    jacobian = MlpJacobian(network, inputs)
    vector, weights = th.randn(network.size, dtype=th.float64), th.randn(6, sizes[-1], dtype=th.float64)
    th.testing.assert_close(jacobian.push(vector).flatten(), explicit @ vector, rtol=1e-9, atol=1e-10)
    out = th.empty(network.size, dtype=th.float64)
    jacobian.pull(weights, out)
    th.testing.assert_close(out, explicit.T @ weights.flatten(), rtol=1e-9, atol=1e-10)


def test_products_leave_the_network_and_each_other_alone() -> None:
    network, _, inputs = make([3, 4, 2], nn.Tanh, 0)
    before = [parameter.detach().clone() for parameter in network.parameters]
    jacobian = MlpJacobian(network, inputs)
    vectors = th.randn(2, network.size, dtype=th.float64)
    first = jacobian.push(vectors[0]).clone()
    out = th.empty(network.size, dtype=th.float64)
    jacobian.pull(jacobian.push(vectors[1]), out)
    th.testing.assert_close(jacobian.push(vectors[0]), first)
    assert all(th.equal(one, other) for one, other in zip(before, network.parameters, strict=True))
    assert all(parameter.grad is None for parameter in network.parameters)


@pytest.mark.parametrize("activation", ELEMENTWISE)
@settings(max_examples=10, deadline=None)
@given(**SIZES)
def test_regression_has_autograds_loss_and_gradient(activation: type[nn.Module], sizes: list[int], seed: int) -> None:
    network, module, inputs = make([*sizes[:-1], 1], activation, seed)
    regression = MlpRegression(network)
    # Not the values it was made with: those that it holds now are what counts.
    regression.parameters.add_(0.1)
    with th.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    for n_samples in (6, 2):
        targets = th.randn(n_samples, 1, dtype=th.float64)
        loss = regression.loss(inputs[:n_samples].clone(), targets)
        expected = nn.functional.mse_loss(module(inputs[:n_samples]), targets)
        assert loss == pytest.approx(expected.item(), rel=1e-9)
        gradient = flatten(th.autograd.grad(expected, list(module.parameters()), allow_unused=True, materialize_grads=True))
        th.testing.assert_close(regression.gradient, gradient, rtol=1e-9, atol=1e-12)


def test_regression_changes_neither_inputs_nor_network() -> None:
    network, module, inputs = make([3, 4, 4, 1], nn.ReLU, 0)
    before, inputs_before = copy.deepcopy(module.state_dict()), inputs.clone()
    regression = MlpRegression(network)
    regression.loss(inputs, th.zeros(6, 1, dtype=th.float64))
    regression.parameters.zero_()
    assert th.equal(inputs, inputs_before)
    assert all(th.equal(value, before[name]) for name, value in module.state_dict().items())
