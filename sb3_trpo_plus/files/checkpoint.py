"""
The files that a training is resumed from.

Each is a zip of the model's file, a JSON document, NumPy arrays, and pickled states of environments, where these can be saved.
Nothing here reads that pickle.
"""

import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_trpo_plus.files.atomic import BEING_WRITTEN, write_whole

MODEL, PROGRESS, ARRAYS, ENVIRONMENTS = "model.zip", "progress.json", "arrays.npz", "environments.pkl"
# In the folder of a run of RL Zoo.
CHECKPOINTS = "checkpoints"
NAME = re.compile(r"checkpoint_(\d+)_steps\.zip")


@dataclass(frozen=True)
class Checkpoint:
    """
    What a file holds.

    :param model: as ``model.save`` writes it
    :param progress: what JSON can represent; NumPy's numbers and arrays become Python's numbers and lists
    :param arrays: by name
    :param environments: a pickle; None if the environments' states could not be saved
    """

    model: bytes = field(repr=False)
    progress: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]
    environments: bytes | None = field(repr=False)

    def write(self, folder: Path) -> Path:
        """
        Write a file whose name has the number of steps.

        :param folder: that exists
        :return: path of the file
        :raises OSError: it can't be written
        """
        arrays = io.BytesIO()
        np.savez(arrays, **self.arrays)  # type: ignore[arg-type]  # it takes these names for its own arguments
        progress = json.dumps(self.progress, default=_plain).encode()
        parts = {MODEL: self.model, PROGRESS: progress, ARRAYS: arrays.getvalue()}
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, part)
            if self.environments is not None:
                archive.writestr(ENVIRONMENTS, self.environments)
        path = folder / f"checkpoint_{self.progress['num_timesteps']}_steps.zip"
        write_whole(path, content.getbuffer())
        return path

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """
        Read a file, without unpickling anything.

        :raises OSError: it can't be read
        :raises ValueError: it is damaged, or something else
        """
        try:
            with zipfile.ZipFile(path) as archive:
                model, progress, arrays = (archive.read(name) for name in (MODEL, PROGRESS, ARRAYS))
                environments = archive.read(ENVIRONMENTS) if ENVIRONMENTS in archive.namelist() else None
            with np.load(io.BytesIO(arrays), allow_pickle=False) as loaded:
                return cls(model, json.loads(progress), dict(loaded), environments)
        except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
            raise ValueError(f"{path} is no whole checkpoint of a training ({error}): name another, or its folder") from error


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's; None for what JSON has no word for, such as an object in an episode's ``info``."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else None


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """The numbers of steps and the paths of the checkpoints in a folder, in order; none if there is no such folder."""
    found = [(NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint_*_steps.zip")]
    return sorted((int(match[1]), path) for match, path in found if match)


def newest_checkpoint(path: Path) -> Path:
    """
    The file that a path means: itself, or the one with the most steps in a folder, or in the folder ``checkpoints`` within it.

    :raises FileNotFoundError: there is none
    """
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"There is no checkpoint at {str(path)!r}, and no folder of checkpoints either")
        return path
    found = checkpoints_in(path) or checkpoints_in(path / CHECKPOINTS)
    if not found:
        raise FileNotFoundError(
            f"There is no checkpoint in {str(path)!r}: TrainingCheckpoint writes checkpoint_*_steps.zip, the first one after "
            "the first update"
        )
    return found[-1][1]


def remove_old(folder: Path, keep: int) -> None:
    """Remove all checkpoints but those with the most steps, and what killed processes left."""
    for _, path in checkpoints_in(folder)[:-keep]:
        path.unlink(missing_ok=True)
    for path in folder.glob(f"checkpoint_*_steps.zip{BEING_WRITTEN}"):
        path.unlink(missing_ok=True)
