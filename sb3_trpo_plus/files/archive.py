"""Zip archives that may be damaged or hostile: their members are read into memory, within limits that are checked before."""

import io
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection

from stable_baselines3.common.save_util import open_path

from sb3_trpo_plus.files.checkpoint import MODEL, PROGRESS
from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.words import one_line

ModelFile = str | pathlib.Path | io.BufferedIOBase

# Members that together grow more than this while they are inflated are no model (SB3's do not grow at all); little may, if it
# is all zeros.
MOST_GROWTH = 20
MOST_BYTES_OF_ZEROS = 2**20
MOST_BYTES = 2**33
MOST_MEMBERS = 10_000
STEP = 2**16
# What tells a checkpoint, by its members.
CHECKPOINTS = {MODEL, PROGRESS}


def name_of(path: ModelFile) -> str:
    """How messages call a file."""
    return f"The file {str(path)!r}" if isinstance(path, (str, pathlib.Path)) else "The given file"


def find(path: ModelFile) -> ModelFile:
    """The zip that a path without ``.zip`` means, also if there is a folder of the same name, as RL Zoo makes one."""
    if isinstance(path, (str, pathlib.Path)) and not pathlib.Path(path).is_file() and pathlib.Path(f"{path}.zip").is_file():
        return pathlib.Path(f"{path}.zip")
    return path


def read_model_archive(path: ModelFile, wanted: Callable[[str], bool], needed: set[str]) -> dict[str, bytes]:
    """
    Members of a saved model.

    :param path: path of the zip, ``.zip`` may be left out, or an open binary file, whose position is kept
    :param wanted: whether to read the member of a name
    :param needed: names without which the file is no saved model
    :return: the wanted members by name
    :raises FileNotFoundError: there is no such file
    :raises UnsafeFileError: it has two members of a name, an encrypted one, or one that inflates without end
    :raises ModelFileError: it is cut off or damaged, lacks a needed member, or is a checkpoint
    """
    try:
        file = open_path(path, "r", suffix="zip")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no saved model at {str(path)!r}, with or without .zip") from error
    start = file.tell()
    try:
        return members(file, wanted, needed)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{name_of(path)} is refused: {one_line(str(error), 1000)}") from error
    except ModelFileError as error:
        raise ModelFileError(f"{name_of(path)} {error}") from error
    except DAMAGES as error:
        words = f"({one_line(str(error))}): it was cut off, damaged or is something else, get it again"
        raise ModelFileError(f"{name_of(path)} is not a whole saved model {words}") from error
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
        else:
            file.seek(start)


# What Python's zipfile raises for damaged archives.
DAMAGES = (
    zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, ArithmeticError, LookupError, OSError, struct.error,
)  # fmt: skip


def members(file: io.BufferedIOBase, wanted: Callable[[str], bool], needed: set[str] | frozenset[str]) -> dict[str, bytes]:
    """As :func:`read_model_archive`, of an open file, with the errors of ``DAMAGES`` for damages."""
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        names = [info.filename for info in infos]
        if len(infos) > MOST_MEMBERS:
            raise UnsafeFileError(f"it has {len(infos):,} members")
        twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
        if twice:
            raise UnsafeFileError(f"it has two members with the name {min(twice)!r}, and readers differ in which they take")
        lacking = needed - set(names)
        if lacking and set(names) >= CHECKPOINTS:
            raise ModelFileError(
                "is a checkpoint of a training, which holds more than a model: go on with it by resume(path, env) of its "
                "algorithm, TRPO.resume(path, env), say"
            )
        if lacking:
            raise zipfile.BadZipFile(f"it has no {' and no '.join(sorted(lacking))}")
        infos = [info for info in infos if wanted(info.filename)]
        check_announced(infos)
        return {info.filename: _inflated(archive, info) for info in infos}


def check_announced(infos: Collection[zipfile.ZipInfo]) -> None:
    """
    Check what a zip says of members, before any is read: its reader is bound by that, for the two methods that are allowed.

    :raises UnsafeFileError: one is encrypted or compressed in another way, or together they grow too much
    """
    for info in infos:
        if info.flag_bits & 1:
            raise UnsafeFileError(f"its {info.filename} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnsafeFileError(f"its {info.filename} is compressed by a method that SB3 and RL Zoo do not use")
    total, stored = sum(info.file_size for info in infos), sum(info.compress_size for info in infos)
    if total > max(MOST_BYTES_OF_ZEROS, MOST_GROWTH * stored) or total > MOST_BYTES:
        raise UnsafeFileError(f"it grows from {stored:,} to {total:,} bytes")


def _inflated(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member, read in steps: at once, zipfile would inflate all of it first, however small it claims to be."""
    try:
        with archive.open(info) as member:
            content = b"".join(iter(lambda: member.read(STEP), b""))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise zipfile.BadZipFile(f"its {info.filename} is damaged") from error
    if len(content) != info.file_size:
        raise zipfile.BadZipFile(f"its {info.filename} is smaller than it says")
    return content
