"""Plain multilayer perceptrons: outputs, and products with the Jacobian of the outputs, in closed form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch as th
from torch import nn

from sb3_trpo_plus.trust_region.flat import flatten, unflatten

Forward = Callable[[th.Tensor], tuple[th.Tensor, th.Tensor]]
Backward = Callable[[th.Tensor, th.Tensor], th.Tensor]


@dataclass(frozen=True)
class Mlp:
    """
    Linear layers with an elementwise activation after each but the last.

    :param layers: all with a bias
    :param activations: one fewer; each maps every element on its own, without parameters or randomness
    """

    layers: Sequence[nn.Linear]
    activations: Sequence[nn.Module]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weight and bias of each layer in turn: the order of the flat vectors that :class:`MlpJacobian` takes and gives."""
        return [parameter for layer in self.layers for parameter in layer.parameters()]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters)


class MlpJacobian:
    """
    J, the Jacobian of an MLP's outputs by its parameters at their present values, in a batch of inputs.

    The activations and their slopes are computed once. A product then takes two matrix products a layer and no memory: what
    :meth:`push` returns, and the hidden layers' work space, are used again by the next call.

    Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994 (the R-operator) for J v; backpropagation for J' u.

    :param network: the layers' values are read now and at each product
    :param inputs: shape (states, inputs)
    """

    @th.no_grad()
    def __init__(self, network: Mlp, inputs: th.Tensor) -> None:
        self.network = network
        self.inputs = [inputs]
        self.slopes: list[th.Tensor] = []
        for layer, activation in zip(network.layers[:-1], network.activations, strict=True):
            output, slope = _value_and_slope(activation, layer(self.inputs[-1]))
            self.inputs.append(output)
            self.slopes.append(slope)
        self.work = [inputs.new_empty(len(inputs), layer.out_features) for layer in network.layers]

    @th.no_grad()
    def push(self, vector: th.Tensor) -> th.Tensor:
        """
        J v, the change of the outputs with a change of the parameters.

        :param vector: shape (number of parameters,)
        :return: shape (states, outputs)
        """
        pieces = unflatten(vector, self.network.parameters)
        for i, layer in enumerate(self.network.layers):
            th.addmm(pieces[2 * i + 1], self.inputs[i], pieces[2 * i].t(), out=self.work[i])
            if i > 0:
                self.work[i].addmm_(self.work[i - 1], layer.weight.t())
            if i < len(self.slopes):
                self.work[i].mul_(self.slopes[i])
        return self.work[-1]

    @th.no_grad()
    def pull(self, weights: th.Tensor, out: th.Tensor) -> None:
        """
        J' u, the gradient by the parameters of the outputs' sum with weights.

        :param weights: u, shape (states, outputs)
        :param out: is filled with the gradient, shape (number of parameters,), contiguous
        """
        pieces = unflatten(out, self.network.parameters)
        for i in reversed(range(len(self.network.layers))):
            th.mm(weights.t(), self.inputs[i], out=pieces[2 * i])
            th.sum(weights, 0, out=pieces[2 * i + 1])
            if i > 0:
                weights = th.mm(weights, self.network.layers[i].weight, out=self.work[i - 1]).mul_(self.slopes[i - 1])


def _value_and_slope(activation: nn.Module, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    with th.enable_grad():
        inputs = inputs.requires_grad_()
        output = activation(inputs)
        (slope,) = th.autograd.grad(output, inputs, th.ones_like(output))
    return output.detach(), slope


class MlpRegression:
    """
    The mean squared error of an MLP with one output, and its gradient, by backpropagation written out.

    For minibatches so small that autograd's bookkeeping takes longer than the arithmetic.

    :param network: its values are copied, and not changed
    """

    def __init__(self, network: Mlp) -> None:
        #: Flat copy of the network's parameters, to be changed in place
        self.parameters = flatten([parameter.detach() for parameter in network.parameters])
        #: Flat gradient by them, of the last minibatch
        self.gradient = th.empty_like(self.parameters)
        self._layers = _pairs(unflatten(self.parameters, network.parameters))
        self._gradients = _pairs(unflatten(self.gradient, network.parameters))
        self._activations = [_training_forms(activation) for activation in network.activations]

    @th.no_grad()
    def loss(self, inputs: th.Tensor, targets: th.Tensor) -> float:
        """
        The error on a minibatch; :attr:`gradient` is filled.

        :param inputs: shape (samples, inputs)
        :param targets: shape (samples, 1)
        :return: mean of the squared differences
        """
        hidden, saved = [inputs], []
        for (weight, bias), (forward, _) in zip(self._layers, self._activations, strict=False):
            output, kept = forward(th.addmm(bias, hidden[-1], weight.t()))
            hidden.append(output)
            saved.append(kept)
        weight, bias = self._layers[-1]
        error = th.addmm(bias, hidden[-1], weight.t()).sub_(targets)
        flat = error.view(-1)
        loss = flat.dot(flat).item() / len(targets)
        delta = error.mul_(2 / len(targets))
        for i in reversed(range(len(self._layers))):
            of_weight, of_bias = self._gradients[i]
            th.mm(delta.t(), hidden[i], out=of_weight)
            th.sum(delta, 0, out=of_bias)
            if i > 0:
                delta = self._activations[i - 1][1](th.mm(delta, self._layers[i][0]), saved[i - 1])
        return loss


def _pairs(pieces: Sequence[th.Tensor]) -> list[tuple[th.Tensor, th.Tensor]]:
    return list(zip(pieces[::2], pieces[1::2], strict=True))


def _training_forms(activation: nn.Module) -> tuple[Forward, Backward]:
    """The activation as a function to (output, what the way back needs), and the way back."""
    aten = th.ops.aten
    if type(activation) is nn.Tanh:
        return lambda inputs: (output := inputs.tanh_(), output), aten.tanh_backward.default
    if type(activation) is nn.ReLU:
        return lambda inputs: (output := inputs.relu_(), output), lambda delta, output: delta.mul_(output > 0)
    return lambda inputs: _value_and_slope(activation, inputs), th.Tensor.mul_
