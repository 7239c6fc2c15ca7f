"""Schedules of former versions: SB3 and RL Zoo then used closures, which cloudpickle writes with their code."""

from collections.abc import Callable
from typing import Any, TypeGuard

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule

from sb3_trpo_plus.files.numbers import is_number
from sb3_trpo_plus.files.pickles import Made, Named

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

CONSTANT = Named("stable_baselines3.common.utils", "ConstantSchedule")
_CLOUDPICKLE = ("cloudpickle.cloudpickle", "cloudpickle.cloudpickle_fast", "cloudpickle")


def is_function(tree: Any) -> TypeGuard[Made]:
    """Whether a tree is a function that cloudpickle wrote with its code."""
    if not isinstance(tree, Made):
        return False
    return _is_call(tree, "_make_function") or _type_named(tree.function) in ("LambdaType", "FunctionType")


def name_of_function(function: Made) -> str:
    """
    Module and qualified name of such a function, joined by a dot.

    :param function: of which :func:`is_function` is true
    """
    module, name = (_described(function).get(key) for key in ("__module__", "__qualname__"))
    return f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "without a name"


def former_schedule(function: Made) -> Schedule | None:
    """
    The schedule object equivalent to a closure of an older SB3 or RL Zoo; None for any other function.

    :param function: of which :func:`is_function` is true
    """
    described = _described(function)
    cells = described.get("__closure__") or ()
    variables = _free_variables(function)
    module, name = described.get("__module__"), described.get("__qualname__")
    if not (isinstance(module, str) and isinstance(name, str) and isinstance(cells, (list, tuple))):
        return None
    make = FORMER_SCHEDULES.get((f"{module}:{name}", variables))
    if make is None or len(cells) != len(variables):
        return None
    contents = [_in_cell(cell) for cell in cells]
    schedule: Schedule | None = None if None in contents else make(*contents)
    return schedule


def _in_cell(cell: Any) -> Any:
    """The number or the schedule in a closure's cell; None for anything else."""
    is_full = _is_call(cell, "_make_cell") and isinstance(cell.arguments, tuple) and len(cell.arguments) == 1
    content: Any = cell.arguments[0] if is_full else None
    if is_function(content):
        return former_schedule(content)
    is_constant = isinstance(content, Made) and content.function == CONSTANT
    if is_constant and isinstance(content.state, dict):
        content = content.state.get("val")
        return ConstantSchedule(content) if is_number(content) else None
    return content if is_number(content) else None


def _described(function: Made) -> dict[Any, Any]:
    """What cloudpickle noted of a function beside its code: ``__module__``, ``__qualname__``, ``__closure__``, ..."""
    state = function.state
    described = state[1] if isinstance(state, tuple) and len(state) == 2 else None
    return described if isinstance(described, dict) else {}


def _free_variables(function: Made) -> tuple[str, ...]:
    try:
        code = function.arguments[0].arguments
        variables = code[-2]
        return variables if isinstance(variables, tuple) and all(isinstance(name, str) for name in variables) else ()
    except (AttributeError, IndexError, TypeError):
        return ()


def _is_call(tree: Any, name: str) -> bool:
    return isinstance(tree, Made) and isinstance(tree.function, Named) and tree.function in _named_by(name)


def _named_by(name: str) -> list[Named]:
    return [Named(module, name) for module in _CLOUDPICKLE]


def _type_named(tree: Any) -> Any:
    """The name of a type that is not importable and so looked up by cloudpickle, ``LambdaType``, say."""
    is_type = _is_call(tree, "_builtin_type") and isinstance(tree.arguments, tuple) and len(tree.arguments) == 1
    return tree.arguments[0] if is_type and isinstance(tree.arguments[0], str) else None
