"""Lists of tensors as one flat vector, and back."""

from collections.abc import Sequence

import torch as th


def flatten(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """
    Concatenate tensors into one vector, in their order.

    :param tensors: tensors of any shapes, one dtype and device
    :return: vector of shape (sum of their numbers of elements,)
    """
    return th.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: th.Tensor, like: Sequence[th.Tensor]) -> list[th.Tensor]:
    """
    Cut a flat vector into views shaped as the given tensors.

    :param vector: shape (sum of the numbers of elements of ``like``,)
    :param like: tensors that give the shapes, in order
    :return: views of ``vector``
    :raises RuntimeError: when the lengths do not add up
    """
    pieces = th.split(vector, [tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]
