"""What a model file holds, without loading it: nothing in it is run, whatever it is."""

import base64
import binascii
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch as th

from sb3_trpo_plus.files.archive import DAMAGES, ModelFile, members, read_model_archive
from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.models import TOLD_BY, json_of, named
from sb3_trpo_plus.files.pickles import Made, Named, names_in, read
from sb3_trpo_plus.files.rebuild import rebuilt
from sb3_trpo_plus.files.tensors import read_tensors

LONGEST_LINE = 100


@dataclass(frozen=True)
class Inspection:
    """
    A model file, described.

    :param told_by: attribute that tells which algorithm saved it, a key of ``TOLD_BY``; None if it has none of those
    :param sb3_version: of the SB3 that saved it; empty if the file does not say
    :param sizes: bytes of each member, by name
    :param attributes: a line for each attribute, by name
    :param shapes: of the policy's parameters, by name
    :param names: all that its pickles name, by attribute or member
    """

    told_by: str | None
    sb3_version: str
    sizes: dict[str, int]
    attributes: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    names: dict[str, list[str]]


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
    pickles = {name: _pickle(value) for name, value in data.items() if isinstance(value, dict) and ":serialized:" in value}
    trees = {name: _followed(pickled) for name, pickled in pickles.items()}
    described = {name: _of_pickle(pickles[name], tree) for name, tree in trees.items()}
    for name, member in parts.items():
        trees.update((f"{name}: {part}", _followed(raw)) for part, raw in _pickles_within(name, member))
    return Inspection(
        next((name for name in TOLD_BY if name in data), None),
        _line(parts.get("_stable_baselines3_version", b"").decode(errors="replace")),
        {name: len(member) for name, member in parts.items()},
        {_line(name): described.get(name) or _described(value) for name, value in data.items()},
        _shapes(parts.get("policy.pth", b"")),
        {_line(name): sorted({_line(str(one)) for one in names_in(tree)}) for name, tree in trees.items()},
    )


def _pickle(value: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(value[":serialized:"], validate=True)
    except (TypeError, ValueError, binascii.Error):
        return b""


def _followed(pickled: bytes) -> Any:
    """The tree of a pickle; what is wrong with it, where it can't be followed."""
    try:
        return read(pickled)
    except UnsafeFileError as error:
        return error


def _of_pickle(pickled: bytes, tree: Any) -> str:
    """One line for a pickle: the object, if it can be had, else what it would be made of."""
    try:
        return _line(repr(rebuilt(pickled)))
    except UnsafeFileError:
        return _described(tree)


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
    return {_line(str(name)): tuple(one.shape) for name, one in state.items() if isinstance(one, th.Tensor)}


def _described(tree: Any) -> str:
    """One line for a JSON value or the tree of a pickle."""
    if isinstance(tree, UnsafeFileError):
        return f"a pickle with {_line(str(tree))}"
    if isinstance(tree, Named):
        return _line(str(tree))
    if isinstance(tree, Made):
        state = tree.state if isinstance(tree.state, dict) else {}
        parts = [f"{name}={value}" for name, value in state.items() if isinstance(value, (bool, int, float, str))]
        return _line(f"{_described(tree.function)}({', '.join(parts)})")
    if isinstance(tree, dict):
        return _line("{" + ", ".join(f"{key}: {_described(value)}" for key, value in list(tree.items())[:20]) + "}")
    if isinstance(tree, (list, tuple)):
        return _line("[" + ", ".join(_described(part) for part in tree[:20]) + "]")
    return _line(repr(tree))


def _line(text: str) -> str:
    """A text of a stranger's in one line, without what a terminal would obey."""
    printable = "".join(character if character.isprintable() else "?" for character in text[: 10 * LONGEST_LINE])
    return printable if len(printable) <= LONGEST_LINE else f"{printable[:LONGEST_LINE]}..."
