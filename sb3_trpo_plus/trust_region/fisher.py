"""Products of the Fisher information matrix of a policy with a vector, without the matrix."""

from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any

import torch as th
from torch.autograd.function import BackwardCFunction

from sb3_trpo_plus.trust_region.flat import flatten
from sb3_trpo_plus.trust_region.metric import OutputBlock
from sb3_trpo_plus.trust_region.mlp import MlpJacobian

FisherVectorProduct = Callable[[th.Tensor], th.Tensor]
Push = Callable[[th.Tensor], Sequence[th.Tensor]]


class NotTwiceDifferentiableError(NotImplementedError):
    """Some function on the way from the parameters to the outputs has no second derivative."""


def gauss_newton_fisher(
    blocks: Sequence[OutputBlock], parameters: Sequence[th.Tensor], push: Push | None = None
) -> FisherVectorProduct:
    """
    F v = mean over states of J' M J v: positive semi-definite by construction, also in floating point.

    Sources: Schulman et al., "Trust Region Policy Optimization", 2015, appendix C.1; Martens, "New insights and
    perspectives on the natural gradient method", 2020, section 8.

    :param blocks: outputs of the policy with their metric, the states along the first dimension of each
    :param parameters: tensors that the outputs are differentiated by
    :param push: v -> J v, the changes of all blocks' outputs with a change of the parameters; None: :func:`reverse_push`
    :return: function of a vector of shape (number of parameters,), to the product of the same shape
    :raises NotTwiceDifferentiableError: as :func:`reverse_push`
    """
    depends = [block.output.requires_grad for block in blocks]
    outputs = [block.output for block in compress(blocks, depends)]
    push = push or reverse_push(blocks, parameters)

    def product(vector: th.Tensor) -> th.Tensor:
        weighted = [block.metric(change) for block, change in zip(blocks, push(vector), strict=True)]
        return _flat_gradient(outputs, parameters, list(compress(weighted, depends))) / len(outputs[0])

    return product


def gauss_newton_curvature(
    blocks: Sequence[OutputBlock], parameters: Sequence[th.Tensor], vector: th.Tensor, push: Push | None = None
) -> th.Tensor:
    """
    v' J_s' M_s J_s v of each state alone: twice the quadratic model of the KL in that state, for a step v.

    :param blocks: as in :func:`gauss_newton_fisher`
    :param parameters: tensors that the outputs are differentiated by
    :param vector: v, shape (number of parameters,)
    :param push: as in :func:`gauss_newton_fisher`
    :return: shape (states,), at least 0
    :raises NotTwiceDifferentiableError: as :func:`reverse_push`
    """
    changes = (push or reverse_push(blocks, parameters))(vector)
    of_blocks = [(change * block.metric(change)).flatten(1).sum(1) for block, change in zip(blocks, changes, strict=True)]
    return th.stack(of_blocks).sum(0)


@th.enable_grad()
def reverse_push(blocks: Sequence[OutputBlock], parameters: Sequence[th.Tensor]) -> Push:
    """
    v -> J v by reverse mode alone: the derivative of J' u, which is linear in u, by u.

    :param blocks: as in :func:`gauss_newton_fisher`, made where gradients are on
    :param parameters: tensors that the outputs are differentiated by
    :return: function of a vector of shape (number of parameters,), to the changes of the blocks' outputs
    :raises NotTwiceDifferentiableError: there is a function that torch can't differentiate twice, or one of the user's own,
        of which it can't be known
    """
    outputs = [block.output for block in blocks]
    probes = [th.zeros_like(output, requires_grad=True) for output in outputs]
    depends = [output.requires_grad for output in outputs]
    pullback = _flat_gradient(list(compress(outputs, depends)), parameters, list(compress(probes, depends)), create_graph=True)
    _check_second_derivatives([*outputs, pullback])
    return lambda vector: _gradients([pullback], probes, [vector])


def _check_second_derivatives(tensors: Sequence[th.Tensor]) -> None:
    """Torch takes what it can't differentiate for constant where the way to it ends, without a word."""
    for node in _graph(tensors):
        if isinstance(node, BackwardCFunction) or node.name().endswith(("::Error", "::NotImplemented")):
            raise NotTwiceDifferentiableError(
                f"{node.name()}, on the way from the parameters to the action distribution, can't be differentiated twice"
            )


def _graph(tensors: Sequence[th.Tensor]) -> Iterator[Any]:
    """The nodes of autograd that tensors were made by."""
    seen: set[Any] = set()
    waiting = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [before for before, _ in node.next_functions]


def empirical_fisher(
    log_prob: th.Tensor, parameters: Sequence[th.Tensor], dimensions: int = 1, push: Push | None = None
) -> FisherVectorProduct:
    """
    F v = mean over samples of (grad log pi(a|s)) (grad log pi(a|s))' v, for the actions that were taken.

    Where they were drawn from the policy, its expectation is the Gauss-Newton form's, which needs no draws: from the same
    states this one is the noisier, and its rank is at most their number.

    Source: Schulman et al., "Trust Region Policy Optimization", 2015, appendix C.1 (the covariance of the policy's gradient).

    :param log_prob: of the actions taken, shape (states,), differentiable by the parameters
    :param parameters: tensors that it is differentiated by
    :param dimensions: that the KL is averaged over (see :mod:`sb3_trpo_plus.trust_region.metric`)
    :param push: v -> the changes of the log-probabilities, as in :func:`gauss_newton_fisher`
    :return: function of a vector of shape (number of parameters,), to the product of the same shape
    """
    return gauss_newton_fisher([OutputBlock(log_prob, lambda change: change / dimensions)], parameters, push)


def mlp_empirical_fisher(
    scores: th.Tensor, jacobian: MlpJacobian, dimensions: int, other_scores: th.Tensor | None = None
) -> FisherVectorProduct:
    """
    The same product for a plain MLP, in closed form.

    :param scores: derivatives of each state's log-probability by the MLP's outputs, shape (states, outputs)
    :param jacobian: of the outputs by the parameters
    :param dimensions: that the KL is averaged over
    :param other_scores: derivatives by parameters outside of the MLP, which come first in the vectors, shape (states, others)
    :return: function of a vector of shape (number of all parameters,), to the product of the same shape, which is valid until
        the next call
    """
    others = scores.new_empty(len(scores), 0) if other_scores is None else other_scores
    n_others = others.shape[1]
    result = scores.new_empty(n_others + jacobian.network.size)

    def product(vector: th.Tensor) -> th.Tensor:
        change = (scores * jacobian.push(vector[n_others:])).sum(1).addmv_(others, vector[:n_others])
        change.div_(dimensions * len(scores))
        jacobian.pull(scores * change[:, None], out=result[n_others:])
        th.mv(others.t(), change, out=result[:n_others])
        return result

    return product


def sum_of_products(products: Sequence[FisherVectorProduct], weights: Sequence[float]) -> FisherVectorProduct:
    """
    The weighted sum of several matrices, as a product with a vector.

    :param products: of the matrices
    :param weights: one each
    :return: function of a vector, to the product of the same shape
    """

    def product(vector: th.Tensor) -> th.Tensor:
        result = th.zeros_like(vector)
        for part, weight in zip(products, weights, strict=True):
            result.add_(part(vector), alpha=weight)
        return result

    return product


def mlp_fisher(blocks: Sequence[OutputBlock], jacobian: MlpJacobian, out: th.Tensor | None = None) -> FisherVectorProduct:
    """
    The same product for a plain MLP, in closed form.

    :param blocks: they share the MLP's outputs among them, in their order along the last dimension
    :param jacobian: of the outputs by the parameters
    :param out: where each product is put, shape (number of parameters,), contiguous; None: in memory of its own
    :return: function of a vector of shape (number of parameters,), to the product of the same shape, which is valid until the
        next call
    """
    widths = [block.output.shape[-1] for block in blocks]
    result = jacobian.inputs[0].new_empty(jacobian.network.size) if out is None else out

    def product(vector: th.Tensor) -> th.Tensor:
        change = jacobian.push(vector)
        if len(blocks) == 1:
            weighted = blocks[0].metric(change)
        else:
            pieces = zip(blocks, th.split(change, widths, dim=-1), strict=True)
            weighted = th.cat([block.metric(piece) for block, piece in pieces], dim=-1)
        jacobian.pull(weighted, out=result)
        return result.div_(len(change))

    return product


@th.enable_grad()
def hessian_fisher(mean_kl: th.Tensor, parameters: Sequence[th.Tensor]) -> FisherVectorProduct:
    """
    F v by differentiating the mean KL(old || new) twice: for families whose metric is not known in closed form.

    Where the two policies are the same, the Hessian of the KL is the Fisher matrix; rounding may leave it indefinite.

    Source: Schulman et al., "Trust Region Policy Optimization", 2015, appendix C.

    :param mean_kl: differentiable scalar
    :param parameters: tensors that it is differentiated by
    :return: function of a vector of shape (number of parameters,), to the product of the same shape
    """
    gradient = _flat_gradient([mean_kl], parameters, create_graph=True)
    _check_second_derivatives([mean_kl, gradient])
    return lambda vector: _flat_gradient([gradient], parameters, [vector])


@th.enable_grad()
def hessian_curvature(kl: th.Tensor, parameters: Sequence[th.Tensor], vector: th.Tensor) -> th.Tensor:
    """
    v' H_s v of each state's KL(old || new), as :func:`gauss_newton_curvature`, for families whose metric is not known.

    :param kl: differentiable, shape (states,)
    :param parameters: tensors that it is differentiated by
    :param vector: v, shape (number of parameters,)
    :return: shape (states,)
    """
    weights = th.ones_like(kl, requires_grad=True)
    gradient = _flat_gradient([kl], parameters, [weights], create_graph=True)
    _check_second_derivatives([kl, gradient])
    slope = gradient.dot(vector)
    curvature = _flat_gradient([slope], parameters, create_graph=True).dot(vector)
    return _gradients([curvature], [weights])[0]


@th.enable_grad()
def _gradients(
    outputs: Sequence[th.Tensor],
    inputs: Sequence[th.Tensor],
    weights: Sequence[th.Tensor] | None = None,
    create_graph: bool = False,
) -> tuple[th.Tensor, ...]:
    return th.autograd.grad(
        outputs, inputs, weights, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def _flat_gradient(
    outputs: Sequence[th.Tensor],
    inputs: Sequence[th.Tensor],
    weights: Sequence[th.Tensor] | None = None,
    create_graph: bool = False,
) -> th.Tensor:
    return flatten(_gradients(outputs, inputs, weights, create_graph))
