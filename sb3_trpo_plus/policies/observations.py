"""Batches of observations: a tensor, or a dict of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs


def select(observations: PyTorchObs, index: slice | th.Tensor) -> PyTorchObs:
    """
    Some samples of a batch of observations.

    :param observations: tensor or dict of tensors, the samples along the first dimension
    :param index: of the samples, a slice or integers of shape (samples,)
    :return: of the same kind
    """
    if isinstance(observations, dict):
        return {key: value[index] for key, value in observations.items()}
    return observations[index]


def every(observations: PyTorchObs, k: int) -> PyTorchObs:
    """
    Every k-th sample of a batch of observations.

    :param observations: tensor or dict of tensors, the samples along the first dimension
    :param k: at least 1
    :return: views of the same kind
    """
    return select(observations, slice(None, None, k))


def stack(observations: Sequence[Any]) -> Any:
    """
    A batch of observations from single ones.

    :param observations: arrays, or dicts of arrays
    :return: of the same kind, the samples along the first dimension
    """
    if isinstance(observations[0], dict):
        return {key: np.stack([one[key] for one in observations]) for key in observations[0]}
    return np.stack(observations)


def parts_of(observations: Any) -> dict[str, Any]:
    """
    The arrays or tensors of a batch of observations by their keys.

    :param observations: one, or a dict of them
    :return: a dict, whose only key is "" where there was none
    """
    return observations if isinstance(observations, dict) else {"": observations}


def whole_of(parts: dict[str, Any]) -> Any:
    """What :func:`parts_of` made this of."""
    return parts[""] if parts.keys() == {""} else parts
