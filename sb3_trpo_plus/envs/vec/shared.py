"""Memory that processes share, with a row for each environment."""

import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env.util import obs_space_info

Array = npt.NDArray[Any]
Field = tuple[Any, tuple[int, ...], "np.dtype[Any]"]
# So that no two arrays share a cache line.
ALIGNMENT = 64


@dataclass(frozen=True)
class Layout:
    """
    Which arrays there are, in the order in which they lie in memory.

    :param n_envs: rows of each array
    :param observations: key, shape and dtype of each part of an observation; the key is None if there is one part
    :param actions: of an action; None where actions have no such form
    """

    n_envs: int
    observations: Sequence[Field]
    actions: Field | None

    @classmethod
    def of(cls, n_envs: int, observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> "Layout":
        """
        :raises TypeError: an observation does not consist of numbers
        :raises NotImplementedError: the spaces of observations are nested, which SB3 has no use for
        """
        keys, shapes, dtypes = obs_space_info(observation_space)
        observations = [(key, shapes[key], dtypes[key]) for key in keys]
        if any(shape is None or dtype is None or np.dtype(dtype).kind not in "biuf" for _, shape, dtype in observations):
            raise TypeError(f"Observations of the space {observation_space} are not arrays of numbers of one size")
        is_array = action_space.shape is not None and action_space.dtype is not None and action_space.dtype.kind in "biuf"
        return cls(n_envs, observations, (None, action_space.shape, action_space.dtype) if is_array else None)  # type: ignore[arg-type]

    @property
    def _fields(self) -> list[Field]:
        own: list[Field] = [("rewards", (), np.dtype(np.float32)), ("dones", (), np.dtype(bool))]
        return [*self.observations, *([] if self.actions is None else [self.actions]), *own]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(self._size(field) for field in self._fields)

    def _size(self, field: Field) -> int:
        _, shape, dtype = field
        n_bytes = self.n_envs * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return -(-n_bytes // ALIGNMENT) * ALIGNMENT


class Shared:
    """
    The arrays in memory.

    :param layout: the same in all processes
    :param file: descriptor of what :func:`anonymous_file` made, which may be closed afterwards
    """

    def __init__(self, layout: Layout, file: int) -> None:
        memory, offset, arrays = mmap.mmap(file, layout.size), 0, []
        for field in layout._fields:
            _, shape, dtype = field
            arrays.append(np.ndarray((layout.n_envs, *shape), dtype, memory, offset))
            offset += layout._size(field)
        keys = [key for key, *_ in layout.observations]
        self.observations: dict[Any, Array] = dict(zip(keys, arrays, strict=False))
        self.actions: Array | None = None if layout.actions is None else arrays[len(keys)]
        self.rewards, self.dones = arrays[-2:]


def anonymous_file(n_bytes: int) -> int:
    """
    A file in memory without a name, so that it is gone with the last process that has it open, however that ends.

    :param n_bytes: all of which are zero
    :return: its descriptor
    """
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("sb3_trpo_plus")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, n_bytes)
    return file
