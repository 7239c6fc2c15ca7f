"""
Reading saved models: ours, sb3-contrib's, and those of the years when Gymnasium was Gym.

SB3 saves a model as a zip with a JSON member ``data``, in which whatever is not JSON is a base64 pickle. Here those pickles
are read, and the objects handed to SB3's loader as its ``custom_objects``, so that it unpickles none itself.
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

# Without these a model would act or learn otherwise than the saved one; the rest is state that learn() makes anew.
NEEDED = (
    "policy_class", "policy_kwargs", "observation_space", "action_space", "learning_rate", "rollout_buffer_class",
    "rollout_buffer_kwargs",
)  # fmt: skip

# Whose file it is: the first of these names that is in its data. Old files of NPG have what TRPO's have, too.
TOLD_BY = {
    "n_rollout_states": "VineTRPO", "step_size": "NPG", "penalty": "PPOPenalty", "line_search_max_iter": "TRPO",
    "clip_range": "PPO",
}  # fmt: skip
# What SB3's models keep beside their data.
TENSORS = {"policy.pth", "policy.optimizer.pth"}


def read_objects(
    path: ModelFile, algorithm: type[BaseAlgorithm], told_by: str, custom_objects: dict[str, Any] | None = None
) -> dict[str, Any]:
    """
    Read everything in a saved model that SB3 would have to unpickle.

    :param path: path of the zip, ``.zip`` may be left out, or an open binary file, whose position is kept
    :param algorithm: the class that is to load it
    :param told_by: the name in ``TOLD_BY`` of the algorithm that it is, or that it is made from
    :param custom_objects: objects to take in place of those in the file, which are then not read
    :return: ``custom_objects``, and the file's own for every other name that is pickled in it
    :raises FileNotFoundError: there is no such file
    :raises ValueError: the file is not a whole model zip, is another algorithm's, or has an object that can't be read
    """
    data = _read_data(path, algorithm)
    found = next((name for name in TOLD_BY if name in data), None)
    if found != told_by:
        whose, has = (f", {TOLD_BY[found]}", f"a {found}") if found else ("", f"no {told_by}")
        words = f"was saved by another algorithm{whose}, {algorithm.__name__} can't load it: it has {has}"
        raise ValueError(f"{_name(path)} {words}")
    # SB3 derives lr_schedule from learning_rate anyway.
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
    """RL Zoo keeps a folder beside each zip that has its name without ``.zip``: leaving that out must not find the folder."""
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
            # Of a file that was cut off, zipfile may find a whole archive inside: each .pth member is one.
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
