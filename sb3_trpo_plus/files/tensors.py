"""
PyTorch's ``.pth`` files, read as data: the pickle in them is followed by :mod:`sb3_trpo_plus.files.pickles`, and tensors are
made of the bytes beside it, within the bounds that are checked here.
"""

import collections
import io
import math
from typing import Any

import torch as th

from sb3_trpo_plus.files.archive import DAMAGES, members
from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.pickles import Kept, Made, Named, read
from sb3_trpo_plus.files.rebuild import Maker, Rebuilding
from sb3_trpo_plus.files.words import shown

STORAGES: dict[str, th.dtype] = {
    "FloatStorage": th.float32, "DoubleStorage": th.float64, "HalfStorage": th.float16, "BFloat16Storage": th.bfloat16,
    "LongStorage": th.int64, "IntStorage": th.int32, "ShortStorage": th.int16, "CharStorage": th.int8, "ByteStorage": th.uint8,
    "BoolStorage": th.bool,
}  # fmt: skip


def read_tensors(pth: bytes) -> Any:
    """
    What ``torch.save`` wrote, on the CPU.

    :param pth: content of the file
    :return: tensors, numbers and text in dicts, lists and tuples
    :raises UnsafeFileError: it has something else
    :raises ModelFileError: it is damaged, or in the format of PyTorch before 1.6
    """
    try:
        # Named <folder>/data.pkl and <folder>/data/<key>; the folder is that of the path it was first saved to.
        parts = members(io.BytesIO(pth), lambda name: True, frozenset())
    except DAMAGES as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"damaged, or not in the format that PyTorch writes since version 1.6 ({error})") from error
    pickles = [name for name in parts if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ModelFileError("not one pickle, but " + str(len(pickles)))
    folder = pickles[0].removesuffix("data.pkl")
    if parts.get(f"{folder}byteorder", b"little") != b"little":
        raise ModelFileError("written on a big-endian machine: save it again on another")
    storages = {name.removeprefix(f"{folder}data/"): raw for name, raw in parts.items() if name.startswith(f"{folder}data/")}
    return Rebuilding(makers=_makers(storages)).of(read(parts[pickles[0]]))


def _versions(metadata: Any) -> Any:
    """Of the modules, by which load_state_dict knows older formats; its other entries would change what it does."""
    versions = {name: entry.get("version") for name, entry in metadata.items()}
    return collections.OrderedDict(
        (name, {"version": version}) for name, version in versions.items() if isinstance(name, str) and type(version) is int
    )


def _makers(storages: dict[str, bytes]) -> dict[str, Maker]:
    made: dict[tuple[str, th.dtype], th.Tensor] = {}

    def memory(kept: Any) -> th.Tensor:
        """The elements of a storage, shape (elements,)."""
        if not (isinstance(kept, Kept) and isinstance(kept.identifier, tuple) and len(kept.identifier) == 5):
            raise UnsafeFileError("a tensor without memory")
        kind, named, key, _, _ = kept.identifier
        dtype = STORAGES.get(named.name) if isinstance(named, Named) and named.module == "torch" else None
        if kind != "storage" or dtype is None or not isinstance(key, str):
            raise UnsafeFileError(f"a tensor of the kind {shown(named)}")
        if key not in storages:
            raise ModelFileError(f"the memory {shown(key)} of a tensor is missing")
        if (key, dtype) not in made:
            raw = bytearray(storages[key])
            if len(raw) % dtype.itemsize:
                raise ModelFileError(f"{len(raw)} bytes for a tensor of {dtype}")
            made[key, dtype] = th.frombuffer(raw, dtype=dtype) if raw else th.empty(0, dtype=dtype)
        return made[key, dtype]

    def tensor(rebuilding: Rebuilding, call: Made) -> th.Tensor:
        kept, offset, size, stride, *_ = call.arguments
        elements = memory(kept)
        if not (isinstance(size, tuple) and isinstance(stride, tuple)):
            raise UnsafeFileError("a tensor whose size is not a tuple")
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or len(size) > 16 or not all(type(one) is int and 0 <= one < 2**40 for one in numbers):
            raise UnsafeFileError(f"a tensor of the size {shown(size)} and the stride {shown(stride)}")
        count = math.prod(size)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        # More elements than memory would be those of a tensor that repeats some: small here, but not where it is copied.
        if count > elements.numel() or (count > 0 and last >= elements.numel()):
            raise UnsafeFileError(f"a tensor of size {size} that reaches beyond its memory of {elements.numel()}")
        rebuilding.count(count * elements.element_size())
        return elements.as_strided(size, stride, offset).clone() if count else th.empty(size, dtype=elements.dtype)

    def parameter(rebuilding: Rebuilding, call: Made) -> th.nn.Parameter:
        data = rebuilding.of(call.arguments[0])
        if not isinstance(data, th.Tensor):
            raise UnsafeFileError("a parameter that is no tensor")
        return th.nn.Parameter(data, requires_grad=bool(call.arguments[1]) and data.is_floating_point())

    def ordered(rebuilding: Rebuilding, call: Made) -> Any:
        entries: Any = collections.OrderedDict((key, rebuilding.of(value)) for key, value in call.items.items())
        if isinstance(call.state, dict) and "_metadata" in call.state:
            entries._metadata = _versions(rebuilding.of(call.state["_metadata"]))
        return entries

    return {
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": parameter,
        "collections.OrderedDict": ordered,
    }
