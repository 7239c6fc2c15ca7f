"""Unpickling of objects that were saved today, or with Gym, the predecessor of Gymnasium."""

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule

NUMPY_CORE = "numpy._core" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core"


def unpickle(pickled: bytes, type_name: str) -> Any:
    if type_name == "<class 'function'>":
        schedule = _former_schedule(pickled)
        if schedule is not None:
            return schedule
    unpickler = GymYearsUnpickler(io.BytesIO(pickled))
    loaded = unpickler.load()
    return rebuild_space(loaded) if unpickler.found_gym and isinstance(loaded, spaces.Space) else loaded


class GymYearsUnpickler(pickle.Unpickler):
    """Maps modules of Gym to Gymnasium, and NumPy's internal modules to those of the installed version."""

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


def rebuild_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Reconstruct a space: an old pickle lacks attributes of today's classes, and has a random generator of the old type."""
    if isinstance(space, spaces.Box):
        return spaces.Box(space.low, space.high, dtype=space.dtype)
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n), start=int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec)
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiBinary(space.n)
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: rebuild_space(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([rebuild_space(part) for part in space.spaces])
    return space


class _SavedFunction:
    """Name and closure of a function that cloudpickle saved, without its bytecode, which needs the same Python version."""

    def __init__(self, code: tuple[Any, ...], *_: Any) -> None:
        self.free_variables: tuple[str, ...] = code[-2]
        self.name = ""
        self.cells: tuple[Any, ...] = ()

    def set_state(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        self.name = f"{state[1].get('__module__')}:{state[1].get('__qualname__')}"
        self.cells = state[1].get("__closure__") or ()


class _FunctionUnpickler(GymYearsUnpickler):
    """Reads functions that cloudpickle saved by value as :class:`_SavedFunction`."""

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


# Keyed by module, name and free variables, so as not to match other closures, of a user's, with the same name.
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
    """The schedule object equivalent to a pickled closure of an older SB3 or RL Zoo; None for any other function."""
    try:
        saved = _FunctionUnpickler(io.BytesIO(pickled)).load()
    except Exception:
        # Some other function, with contents that the stand-ins do not cover.
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
