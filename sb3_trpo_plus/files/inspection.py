"""What a model file holds, without loading it: nothing in it is run, whatever it is."""

import io
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo_plus.files.archive import DAMAGES, ModelFile, members, read_model_archive
from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.models import json_of, named, pickle_in, told
from sb3_trpo_plus.files.pickles import read
from sb3_trpo_plus.files.rebuild import MAKERS, NAMEABLE, Rebuilding, is_schedule, names_told, path_of
from sb3_trpo_plus.files.tensors import STORAGES, read_tensors
from sb3_trpo_plus.files.words import one_line, shown


@dataclass(frozen=True)
class Inspection:
    """
    A model file, described.

    :param told_by: attribute that tells which algorithm saved it, a key of ``TOLD_BY``; None if it has none of those
    :param sb3_version: of the SB3 that saved it; empty if the file does not say
    :param sizes: bytes of each member, by name
    :param attributes: a line for each attribute, by name
    :param shapes: of the policy's parameters, by name
    :param names: all that its pickles name or bring the code of, by attribute or member
    """

    told_by: str | None
    sb3_version: str
    sizes: dict[str, int]
    attributes: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    names: dict[str, list[str]]


# What files name of NumPy, torch and SB3 beside what is read: generators, which are left out, and tensors.
_HARMLESS = {
    "numpy.ndarray",
    "numpy.random._mt19937.MT19937",
    "numpy.random._pcg64.PCG64",
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random.bit_generator.SeedSequence",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    *(f"torch.{name}" for name in STORAGES),
    path_of(VecNormalize),
}


def beyond_the_lists(names: Iterable[str]) -> list[str]:
    """
    Those names in a file's pickles that no model needs: what other readers of pickles would import, and may call.

    :param names: of an :class:`Inspection`, or of :func:`~sb3_trpo_plus.files.statistics.names_in_statistics`
    :return: each once
    """
    return sorted(set(names) - MAKERS.keys() - NAMEABLE.keys() - _HARMLESS)


def inspect_model(path: ModelFile) -> Inspection:
    """
    Describe a model file.

    :param path: path of the zip, ``.zip`` may be left out, or an open binary file, whose position is kept
    :raises FileNotFoundError: there is no such file
    :raises ModelFileError: it is no zip, is damaged, or has no ``data``
    """
    parts = read_model_archive(path, lambda name: True, {"data"})
    with named(path):
        data = json_of(parts["data"])
    trees = {name: _followed(pickled) for name, value in data.items() if (pickled := _pickle(value)) is not None}
    described = {name: _of_pickle(tree) for name, tree in trees.items()}
    for name, member in parts.items():
        trees.update((f"{name}: {part}", _followed(raw)) for part, raw in _pickles_within(name, member))
    return Inspection(
        told(data),
        one_line(parts.get("_stable_baselines3_version", b"").decode(errors="replace")),
        {one_line(name): len(member) for name, member in parts.items()},
        {one_line(name): described.get(name) or shown(value) for name, value in data.items()},
        _shapes(parts.get("policy.pth", b"")),
        {one_line(name): names_told(tree) for name, tree in trees.items()},
    )


def _pickle(value: Any) -> bytes | None:
    try:
        return pickle_in(value)
    except UnsafeFileError:
        return b""


def _followed(pickled: bytes) -> Any:
    """The tree of a pickle; what is wrong with it in words, where it can't be followed."""
    try:
        return read(pickled)
    except UnsafeFileError as error:
        return f"a pickle with {error}"


def _of_pickle(tree: Any) -> str:
    """One line for a pickle: the object, if it can be had, else what it would be made of."""
    try:
        found = Rebuilding().of(tree)
    except (UnsafeFileError, RecursionError):
        return shown(tree)
    # Their own words, which are of a limited length.
    is_known = isinstance(found, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)) or is_schedule(found)
    return one_line(repr(found)) if is_known else shown(found if not isinstance(found, deque) else list(found))


def _pickles_within(name: str, member: bytes) -> Iterator[tuple[str, bytes]]:
    if name.endswith(".pth"):
        try:
            yield from members(io.BytesIO(member), lambda part: part.endswith(".pkl"), frozenset()).items()
        except DAMAGES:
            return


def _shapes(pth: bytes) -> dict[str, tuple[int, ...]]:
    try:
        state = read_tensors(pth)
    except ModelFileError:
        return {}
    if not isinstance(state, dict):
        return {}
    return {one_line(str(name)): tuple(one.shape) for name, one in state.items() if isinstance(one, th.Tensor)}
