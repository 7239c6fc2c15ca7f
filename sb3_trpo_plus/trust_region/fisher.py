"""Products of the Fisher information matrix of a policy with a vector, without the matrix."""

from collections.abc import Callable, Sequence
from itertools import compress

import torch as th

from sb3_trpo_plus.trust_region.flat import flatten
from sb3_trpo_plus.trust_region.metric import OutputBlock
from sb3_trpo_plus.trust_region.mlp import MlpJacobian

FisherVectorProduct = Callable[[th.Tensor], th.Tensor]
Push = Callable[[th.Tensor], Sequence[th.Tensor]]


def gauss_newton_fisher(
    blocks: Sequence[OutputBlock], parameters: Sequence[th.Tensor], push: Push | None = None
) -> FisherVectorProduct:
    """
    F v = mean over states of J' M J v: positive semi-definite by construction, also in floating point.

    J v is ``push(v)``; without that, or where forward mode has no rule for some layer, it is the derivative of J' u, which is
    linear in u, with respect to u. That takes reverse mode alone, so it works for any network that can be differentiated
    twice.

    Sources: Schulman et al., "Trust Region Policy Optimization", 2015, appendix C.1; Martens, "New insights and
    perspectives on the natural gradient method", 2020, section 8.

    :param blocks: outputs of the policy with their metric, the states along the first dimension of each
    :param parameters: tensors that the outputs are differentiated by
    :param push: gives the changes of all blocks' outputs with a change of the parameters, by forward mode
    :return: function of a vector of shape (number of parameters,), to the product of the same shape
    """
    depends = [block.output.requires_grad for block in blocks]
    blocks = list(compress(blocks, depends))
    outputs = [block.output for block in blocks]
    by_reverse_mode = None if push else _push_by_reverse_mode(outputs, parameters)

    def product(vector: th.Tensor) -> th.Tensor:
        nonlocal by_reverse_mode
        if push and not by_reverse_mode:
            try:
                changes = list(compress(push(vector), depends))
            except (NotImplementedError, RuntimeError):
                by_reverse_mode = _push_by_reverse_mode(outputs, parameters)
        if by_reverse_mode:
            changes = list(by_reverse_mode(vector))
        weighted = [block.metric(change) for block, change in zip(blocks, changes, strict=True)]
        return _flat_gradient(outputs, parameters, weighted) / len(outputs[0])

    return product


def _push_by_reverse_mode(outputs: Sequence[th.Tensor], parameters: Sequence[th.Tensor]) -> Push:
    probes = [th.zeros_like(output, requires_grad=True) for output in outputs]
    pullback = _flat_gradient(outputs, parameters, probes, create_graph=True)
    return lambda vector: _gradients([pullback], probes, [vector])


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
    return lambda vector: _flat_gradient([gradient], parameters, [vector])


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
