"""Files that are replaced as a whole: whatever ends the process or the disk's space, the old content or the new is there."""

import contextlib
import os
import pickle
import shutil
import warnings
from pathlib import Path

from stable_baselines3.common.vec_env import VecNormalize

# Always the same, so that a process that is killed while it saves, however often, leaves one file that the next save reuses.
BEING_WRITTEN = ".tmp"


def write_whole(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """
    Write a file that is only seen once it is complete, on the disk too.

    The content goes to a file beside it, whose name has ``.tmp`` after it and which then takes its place. Of an existing file
    the permissions are kept; a link stays a link, to the new content. What is not a regular file, such as a pipe, is written
    to directly.

    :param path: of the file, in a folder that exists
    :param content: all of it
    :raises OSError: it can't be written; the error names the file, which is as it was before
    """
    # Not resolved unless it is a link, since that would need the current folder, which may have been removed.
    target = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
    beside = target.with_name(target.name + BEING_WRITTEN)
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(content)
            return
        try:
            with beside.open("wb", buffering=0) as file:
                left = memoryview(content)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, beside)
            os.replace(beside, target)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror}, so nothing was written and what was there is whole", str(path)
        ) from error
    _make_durable(target.parent)


def _make_durable(folder: Path) -> None:
    """Bring a folder's names to the disk, where the operating system and the file system can; the file itself is there."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def path_to_write(path: str | os.PathLike[str], suffix: str) -> Path:
    """
    The file that SB3 writes for a path, with SB3's warnings: the folder it is in is created, and is not overwritten itself.

    :param path: that the user gave
    :param suffix: without the dot, added if the path has none
    """
    path = Path(path)
    if not path.suffix:
        path = Path(f"{path}.{suffix}")
    while path.is_dir():
        warnings.warn(f"Path '{path}' is a folder. Will save instead to {path}_2")
        path = Path(f"{path}_2")
    if not path.parent.exists():
        warnings.warn(f"Path '{path.parent}' does not exist. Will create it.")
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def save_vec_normalize(vec_normalize: VecNormalize, save_path: str | os.PathLike[str]) -> None:
    """
    Save normalisation statistics as ``VecNormalize.save`` does, but so that nothing ends with half a file.

    :param vec_normalize: its settings and statistics are saved
    :param save_path: path of the file
    :raises OSError: it can't be written; an existing file is as it was before
    """
    write_whole(save_path, pickle.dumps(vec_normalize))
