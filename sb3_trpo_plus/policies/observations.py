"""Batches of observations: an array or tensor, or a dict of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs


def select(observations: PyTorchObs, index: slice | th.Tensor) -> PyTorchObs:
    """
    Some samples of a batch of observations.

    :param observations: tensor or dict of tensors, the samples along the first dimension
    :param index: slice, or integers of shape (samples,)
    :return: tensor or dict of tensors, as ``observations``
    """
    if isinstance(observations, dict):
        return {key: value[index] for key, value in observations.items()}
    return observations[index]


def every(observations: PyTorchObs, k: int) -> PyTorchObs:
    """
    Every k-th sample of a batch of observations.

    :param observations: tensor or dict of tensors, the samples along the first dimension
    :param k: at least 1
    :return: views: tensor or dict of tensors, as ``observations``
    """
    return select(observations, slice(None, None, k))


def stack(observations: Sequence[Any]) -> Any:
    """
    Stack single observations into a batch.

    :param observations: arrays, or dicts of arrays
    :return: array or dict of arrays, the samples along the first dimension
    """
    if isinstance(observations[0], dict):
        return {key: np.stack([one[key] for one in observations]) for key in observations[0]}
    return np.stack(observations)


def parts_of(observations: Any) -> dict[str, Any]:
    """
    A batch of observations as a dict, also if it is not one.

    :param observations: array or tensor, or a dict of them
    :return: the dict itself, or one with the single key ""
    """
    return observations if isinstance(observations, dict) else {"": observations}


def whole_of(parts: dict[str, Any]) -> Any:
    """The inverse of :func:`parts_of`."""
    return parts[""] if parts.keys() == {""} else parts
