"""Checks that constructor arguments are in their ranges."""

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

Range = tuple[Any, Callable[[Any], bool], str]

FROM_0_TO_1: Range = (Real, lambda x: 0 <= x <= 1, "a number from 0 to 1")

POSITIVE: Range = (Real, lambda x: x > 0, "a positive number")

AT_LEAST_0: Range = (Real, lambda x: x >= 0, "a number of at least 0")

FRACTION: Range = (Real, lambda x: 0 < x < 1, "a number between 0 and 1, both excluded")

COUNT: Range = (Integral, lambda x: x >= 1, "an integer of at least 1")

COUNT_OR_0: Range = (Integral, lambda x: x >= 0, "an integer of at least 0")

# Arguments that may be schedules, and the range of the values that a schedule may return.
SCHEDULES: dict[str, Range] = {"gamma": FROM_0_TO_1, "target_kl": AT_LEAST_0, "ent_coef": AT_LEAST_0}


def check_range(name: str, value: Any, allowed: Range) -> None:
    """Check an argument's value, and raise ValueError if it is out of its range or not finite."""
    kind, in_range, words = allowed
    if not (isinstance(value, kind) and (isinstance(value, str) or math.isfinite(value)) and in_range(value)):
        raise ValueError(f"{name} must be {words}, but it is {value!r}")


def one_of(*names: str) -> Range:
    """The range of an argument that must be one of some strings."""
    return (str, lambda x: x in names, " or ".join(map(repr, names)))
