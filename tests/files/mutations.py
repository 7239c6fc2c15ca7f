"""Mutations of real model files, for a fuzz: of the zip, of a member, of an attribute, and of a pickle's bytes."""

import base64
import io
import json
import random
import zipfile
from typing import Any

Parts = dict[str, bytes]

NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    -(2**63),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    True,
    None,
    "",
    "x",
    [],
    {},
)


def members(file: bytes) -> Parts:
    """The members of a zip."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: Parts) -> bytes:
    """A zip of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


def mutated(file: bytes, rng: random.Random) -> bytes:
    """
    A file that differs a little from a real one.

    :param file: the real one
    :param rng: decides where and how
    """
    kind = rng.random()
    if kind < 0.1:
        return _bytes(file, rng)
    parts = members(file)
    if kind < 0.3:
        name = rng.choice(list(parts))
        parts[name] = _bytes(parts[name], rng)
    elif kind < 0.45:
        name = rng.choice([name for name in parts if name.endswith(".pth")])
        inner = members(parts[name])
        part = rng.choice(list(inner))
        parts[name] = zipped({**inner, part: _bytes(inner[part], rng)})
    else:
        parts["data"] = _attribute(parts["data"], rng)
    return zipped(parts)


def _attribute(raw: bytes, rng: random.Random) -> bytes:
    data = json.loads(raw)
    name = rng.choice(list(data))
    value = data[name]
    if isinstance(value, dict) and ":serialized:" in value and rng.random() < 0.8:
        pickled = base64.b64decode(value[":serialized:"])
        data[name] = {**value, ":serialized:": base64.b64encode(_bytes(pickled, rng)).decode()}
    elif rng.random() < 0.3:
        data[rng.choice(list(data))] = value
    else:
        data[name] = rng.choice(NUMBERS)
    return json.dumps(data).encode()


def _bytes(raw: bytes, rng: random.Random) -> bytes:
    """One to four bytes changed, a stretch cut out, doubled or overwritten, or the end cut off."""
    changed = bytearray(raw)
    if not changed:
        return rng.randbytes(4)
    at = rng.randrange(len(changed))
    length = rng.choice((1, 2, 8, 64))
    how = rng.randrange(6)
    if how <= 1:
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    elif how == 2:
        del changed[at : at + length]
    elif how == 3:
        changed[at:at] = changed[at : at + length]
    elif how == 4:
        changed[at : at + length] = rng.randbytes(length)
    else:
        del changed[at:]
    return bytes(changed)
