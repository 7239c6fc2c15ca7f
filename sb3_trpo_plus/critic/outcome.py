"""What both ways to fit the critic share: their outcome, and what they ask of tensors."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch as th

NOT_USABLE = "the critic was not finite in the end, and is as it was before. Lower learning_rate"


@dataclass(frozen=True)
class CriticFit:
    """
    The outcome of a fit of the critic.

    :param loss: mean of the minibatches' mean squared errors; None if no step was taken
    :param stopped: why the fit ended early, in words; None if it did not
    """

    loss: float | None
    stopped: str | None = None


def broken(loss: float, gradient_norm: float) -> str | None:
    """A message if the loss or the gradient norm of a minibatch is not finite; None if both are."""
    if math.isfinite(loss + gradient_norm):
        return None
    return (
        f"a minibatch has loss {loss:.3g} and gradient norm {gradient_norm:.3g}. "
        "Look for very large returns or observations (VecNormalize scales both), or lower learning_rate"
    )


def all_finite(*tensors: th.Tensor) -> bool:
    """Whether no element of any is NaN or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def forget_gradients(optimizer: th.optim.Optimizer, parameters: Iterable[th.nn.Parameter]) -> None:
    """
    :param optimizer: which may not have all of the parameters
    :param parameters: of the critic
    """
    optimizer.zero_grad()
    for parameter in parameters:
        parameter.grad = None
