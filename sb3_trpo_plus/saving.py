"""
Reading saved models and normalisation statistics: ours, sb3-contrib's, and those of the years when Gymnasium was Gym.

SB3 saves a model as a zip with a JSON member ``data``, in which whatever is not JSON is a base64 pickle. Here those pickles
are read, and the objects handed to SB3's loader as its ``custom_objects``, so that it unpickles none itself.
"""

import base64
import io
import json
import pathlib
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

ModelFile = str | pathlib.Path | io.BufferedIOBase

# Without these a model would act or learn otherwise than the saved one; the rest is state that learn() makes anew.
NEEDED = (
    "policy_class", "policy_kwargs", "observation_space", "action_space", "learning_rate", "rollout_buffer_class",
    "rollout_buffer_kwargs",
)  # fmt: skip
NUMPY_CORE = "numpy._core" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core"


def read_objects(
    path: ModelFile, algorithm: str, attributes: Sequence[str], custom_objects: dict[str, Any] | None = None
) -> dict[str, Any]:
    """
    Read everything in a saved model that SB3 would have to unpickle.

    :param path: path of the zip, ``.zip`` may be left out, or an open binary file, whose position is kept
    :param algorithm: name of the algorithm that is to load it
    :param attributes: names that the data of this algorithm has and the others' lack
    :param custom_objects: objects to take in place of those in the file, which are then not read
    :return: ``custom_objects``, and the file's own for every other name that is pickled in it
    :raises FileNotFoundError: there is no such file
    :raises ValueError: the file is not a whole model zip, is another algorithm's, or has an object that can't be read
    """
    data = _read_data(path)
    missing = [name for name in attributes if name not in data]
    if missing:
        raise ValueError(
            f"{_name(path)} was saved by another algorithm, {algorithm} can't load it: it has no {' and no '.join(missing)}"
            + (", but clip_range as PPO's have" if "clip_range" in data else "")
        )
    # SB3 derives lr_schedule from learning_rate anyway.
    objects: dict[str, Any] = {"lr_schedule": None, **(custom_objects or {})}
    for name, value in data.items():
        if name not in objects and isinstance(value, dict) and ":serialized:" in value:
            try:
                objects[name] = _unpickle(base64.b64decode(value[":serialized:"]), value.get(":type:", ""))
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


def load_vec_normalize(load_path: str | pathlib.Path, venv: VecEnv) -> VecNormalize:
    """
    Load the statistics that ``VecNormalize.save`` wrote, with Gym's spaces or Gymnasium's.

    :param load_path: path of the file
    :param venv: environments to wrap
    :return: the wrapped environments
    :raises ValueError: the file holds something else, or can't be read
    """
    with open(load_path, "rb") as file:
        unpickler = _Unpickler(file)
        try:
            loaded = unpickler.load()
        except Exception as error:
            raise ValueError(f"{load_path} can't be read as VecNormalize statistics: {error}") from error
    if not isinstance(loaded, VecNormalize):
        raise ValueError(f"{load_path} holds a {type(loaded).__name__}, not VecNormalize statistics")
    if unpickler.found_gym:
        loaded.observation_space = _rebuild_space(loaded.observation_space)
        loaded.action_space = _rebuild_space(loaded.action_space)
    loaded.set_venv(venv)
    return loaded


def _name(path: ModelFile) -> str:
    return f"The file {str(path)!r}" if isinstance(path, (str, pathlib.Path)) else "The given file"


def _read_data(path: ModelFile) -> dict[str, Any]:
    try:
        file = open_path(path, "r", suffix="zip")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no saved model at {str(path)!r}, with or without .zip") from error
    start = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            # Of a file that was cut off, zipfile may find a whole archive inside: each .pth member is one.
            lacking = {"data", "policy.pth", "policy.optimizer.pth"} - set(archive.namelist())
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


def _unpickle(pickled: bytes, type_name: str) -> Any:
    if type_name == "<class 'function'>":
        schedule = _former_schedule(pickled)
        if schedule is not None:
            return schedule
    unpickler = _Unpickler(io.BytesIO(pickled))
    loaded = unpickler.load()
    return _rebuild_space(loaded) if unpickler.found_gym and isinstance(loaded, spaces.Space) else loaded


class _Unpickler(pickle.Unpickler):
    """Finds Gym's classes in Gymnasium, and numpy's internals where the installed numpy has them."""

    found_gym = False

    def find_class(self, module: str, name: str) -> Any:
        package, _, rest = module.partition(".")
        if package == "gym":
            self.found_gym = True
            module = f"gymnasium.{rest}" if rest else "gymnasium"
        for core in ("numpy.core", "numpy._core"):
            if module == core or module.startswith(f"{core}."):
                module = NUMPY_CORE + module.removeprefix(core)
        return super().find_class(module, name)


def _rebuild_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The same space made anew, since an old pickle lacks what today's classes keep, and has an old random generator."""
    if isinstance(space, spaces.Box):
        return spaces.Box(space.low, space.high, dtype=space.dtype)
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n), start=int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec)
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiBinary(space.n)
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _rebuild_space(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([_rebuild_space(part) for part in space.spaces])
    return space


class _SavedFunction:
    """What cloudpickle wrote of a function, without making a function of it: bytecode only fits the Python that wrote it."""

    def __init__(self, code: tuple[Any, ...], *_: Any) -> None:
        self.free_variables: tuple[str, ...] = code[-2]
        self.name = ""
        self.cells: tuple[Any, ...] = ()

    def set_state(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        self.name = f"{state[1].get('__module__')}:{state[1].get('__qualname__')}"
        self.cells = state[1].get("__closure__") or ()


class _FunctionUnpickler(_Unpickler):
    """Reads a function that cloudpickle saved by value as a :class:`_SavedFunction`."""

    stand_ins: ClassVar[dict[str, Callable[..., Any]]] = {
        "_builtin_type": lambda name: {"LambdaType": _SavedFunction, "CodeType": lambda *code: code}[name],
        "_make_function": _SavedFunction,
        "_function_setstate": _SavedFunction.set_state,
        "_make_empty_cell": lambda: None,
        "_make_cell": lambda value=None: value,
    }

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "cloudpickle" and name in self.stand_ins:
            return self.stand_ins[name]
        return super().find_class(module, name)


# By module, name and free variables: users have closures of the same names that do something else.
FORMER_SCHEDULES: dict[tuple[str, tuple[str, ...]], Callable[..., Any]] = {
    ("stable_baselines3.common.utils:constant_fn.<locals>.func", ("val",)): ConstantSchedule,
    ("stable_baselines3.common.utils:get_linear_fn.<locals>.func", ("end", "end_fraction", "start")): (
        lambda end, end_fraction, start: LinearSchedule(start, end, end_fraction)
    ),
    ("stable_baselines3.common.utils:get_schedule_fn.<locals>.<lambda>", ("value_schedule",)): lambda schedule: schedule,
    **{
        (f"{module}:linear_schedule.<locals>.func", (variable,)): lambda initial: LinearSchedule(initial, 0.0, 1.0)
        for module in ("utils.utils", "rl_zoo3.utils")
        for variable in ("initial_value", "initial_value_")
    },
}


def _former_schedule(pickled: bytes) -> Schedule | None:
    """The schedule object that does what one of SB3's or RL Zoo's former closures did; None for any other function."""
    try:
        saved = _FunctionUnpickler(io.BytesIO(pickled)).load()
    except Exception:
        # A function that closes over more than those did.
        return None
    return _as_schedule(saved)


def _as_schedule(saved: Any) -> Schedule | None:
    if not isinstance(saved, _SavedFunction):
        return saved if isinstance(saved, (ConstantSchedule, LinearSchedule)) else None
    make = FORMER_SCHEDULES.get((saved.name, saved.free_variables))
    if make is None:
        return None
    cells = [_as_schedule(cell) if isinstance(cell, _SavedFunction) else cell for cell in saved.cells]
    schedule: Schedule | None = None if None in cells else make(*cells)
    return schedule
