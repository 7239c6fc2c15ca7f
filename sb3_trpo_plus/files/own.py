"""
What this process has itself saved.

A pickle that is, byte for byte, one that this process wrote is no one else's program: what it makes was here before. So a
script that loads what it has saved need not list its own classes and schedules.
"""

import hashlib
import io
import json
import zipfile
from typing import Any

# Of digests, which have 32 bytes each; no script loads its ten-thousandth last file.
MOST = 2**16

# In the order in which they were last written.
_written: dict[bytes, None] = {}


def note_saved(model: bytes | memoryview) -> None:
    """
    Take note of the pickles in a model's file that this process has written.

    :param model: content of the file
    """
    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        attributes = json.loads(archive.read("data"))
    for name, value in attributes.items():
        digest = _digest(name, value)
        if digest is not None:
            _written.pop(digest, None)
            _written[digest] = None
    while len(_written) > MOST:
        del _written[next(iter(_written))]


def is_own(name: str, value: Any) -> bool:
    """
    Whether this process has saved this very pickle for this attribute.

    :param name: of the attribute
    :param value: what the member ``data`` of a file has for it
    """
    return _digest(name, value) in _written


def _digest(name: str, value: Any) -> bytes | None:
    """Of an attribute's name and pickle; None for a value of JSON's."""
    pickled = value.get(":serialized:") if isinstance(value, dict) else None
    return hashlib.sha256(f"{name}\0{pickled}".encode()).digest() if isinstance(pickled, str) else None
