"""
Reading saved models: this package's, sb3-contrib's, and those saved with Gym, the predecessor of Gymnasium.

SB3 saves a model as a zip with a JSON member ``data``, in which objects that JSON can't represent are base64 pickles. Here
they are unpickled, and passed to SB3's loader as ``custom_objects``, so that it unpickles none itself.
"""

import base64
import io
import json
import pathlib
import warnings
import zipfile
import zlib
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import open_path

from sb3_trpo_plus.files.gym_years import unpickle

ModelFile = str | pathlib.Path | io.BufferedIOBase

# Objects without which a model would act or learn differently from the saved one; learn() recreates all others.
NEEDED = (
    "policy_class", "policy_kwargs", "observation_space", "action_space", "learning_rate", "rollout_buffer_class",
    "rollout_buffer_kwargs",
)  # fmt: skip

# Which algorithm saved a file: the one of the first name found in its data. Old files of NPG also have TRPO's attributes.
TOLD_BY = {
    "n_rollout_states": "VineTRPO", "step_size": "NPG", "penalty": "PPOPenalty", "line_search_max_iter": "TRPO",
    "clip_range": "PPO",
}  # fmt: skip
# Members that SB3 writes to the zip beside "data".
TENSORS = {"policy.pth", "policy.optimizer.pth"}


def read_objects(
    path: ModelFile, algorithm: type[BaseAlgorithm], told_by: str, custom_objects: dict[str, Any] | None = None
) -> dict[str, Any]:
    """
    Unpickle the objects in a saved model, for ``BaseAlgorithm.load``.

    :param path: path of the zip, ``.zip`` may be left out, or an open binary file, whose position is kept
    :param algorithm: class that is to be loaded
    :param told_by: key of ``TOLD_BY`` for that class, or for the base class that it is derived from
    :param custom_objects: objects that replace those of the same name in the file, which are then not unpickled
    :return: ``custom_objects``, and the unpickled objects of all other names
    :raises FileNotFoundError: there is no such file
    :raises ValueError: the file is damaged, was saved by another algorithm, or has a needed object that can't be read
    """
    data = _read_data(path, algorithm)
    found = next((name for name in TOLD_BY if name in data), None)
    if found != told_by:
        whose, has = (f", {TOLD_BY[found]}", f"a {found}") if found else ("", f"no {told_by}")
        words = f"was saved by another algorithm{whose}, {algorithm.__name__} can't load it: it has {has}"
        raise ValueError(f"{_name(path)} {words}")
    # Not unpickled, since SB3 derives it from learning_rate.
    objects: dict[str, Any] = {"lr_schedule": None, **(custom_objects or {})}
    for name, value in data.items():
        if name not in objects and isinstance(value, dict) and ":serialized:" in value:
            try:
                objects[name] = unpickle(base64.b64decode(value[":serialized:"]), value.get(":type:", ""))
            except Exception as error:
                if name in NEEDED:
                    raise ValueError(
                        f"{_name(path)}: its {name} ({value.get(':type:')}) can't be read here ({error}). "
                        f"Pass another one: load(..., custom_objects={{'{name}': ...}})"
                    ) from error
                warnings.warn(f"{_name(path)}: its {name} can't be read here ({error}) and is left out")
                objects[name] = None
    return objects


def find(path: ModelFile) -> ModelFile:
    """The zip that a path without ``.zip`` means, also if there is a folder of the same name, as RL Zoo makes one."""
    if isinstance(path, (str, pathlib.Path)) and pathlib.Path(path).is_dir() and pathlib.Path(f"{path}.zip").is_file():
        return pathlib.Path(f"{path}.zip")
    return path


def _name(path: ModelFile) -> str:
    return f"The file {str(path)!r}" if isinstance(path, (str, pathlib.Path)) else "The given file"


def _read_data(path: ModelFile, algorithm: type[BaseAlgorithm]) -> dict[str, Any]:
    try:
        file = open_path(path, "r", suffix="zip")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no saved model at {str(path)!r}, with or without .zip") from error
    start = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            # The .pth members are zips themselves, and in a truncated file zipfile may find one of those instead.
            is_its_own = algorithm._get_torch_save_params is not OnPolicyAlgorithm._get_torch_save_params
            lacking = {"data", *(() if is_its_own else TENSORS)} - set(archive.namelist())
            if lacking:
                raise zipfile.BadZipFile(f"it has no {' and no '.join(sorted(lacking))}")
            damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"its {damaged} is damaged")
            data: dict[str, Any] = json.loads(archive.read("data"))
            return data
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{_name(path)} is not a whole saved model ({error}): it was cut off, damaged or is something else, get it again"
        ) from error
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
        else:
            file.seek(start)
