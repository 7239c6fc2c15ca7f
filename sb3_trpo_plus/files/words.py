"""What messages say of values that may be hostile: little, in one line, whatever they are."""

from typing import Any

import numpy as np

from sb3_trpo_plus.files.pickles import Kept, Made, Named

LONGEST = 100
MOST_PARTS = 5
DEEPEST = 3


def one_line(text: str, longest: int = LONGEST) -> str:
    """A text without what a terminal would obey, cut off after so many characters."""
    cut = text[:longest]
    return "".join(character if character.isprintable() else "?" for character in cut) + ("..." if len(text) > longest else "")


def shown(value: Any, depth: int = 0) -> str:
    """
    A value, or the tree of a pickle, in a few words. Their own ``repr`` may take for ever, since parts may be shared.

    :param value: anything
    :param depth: how deep it is in what is shown
    """
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**30 else "a huge integer"
    if isinstance(value, np.generic):
        return one_line(repr(value))
    if isinstance(value, (str, bytes)):
        return one_line(repr(value[:LONGEST]), LONGEST)
    if isinstance(value, Named):
        return one_line(f"{value.module[:LONGEST]}.{value.name[:LONGEST]}")
    if isinstance(value, type):
        return one_line(f"{value.__module__}.{value.__qualname__}")
    if depth >= DEEPEST:
        return "..."
    if isinstance(value, Made):
        return one_line(f"{shown(value.function, depth + 1)}(...)")
    if isinstance(value, (list, tuple, dict)):
        pairs = list(value.items())[:MOST_PARTS] if isinstance(value, dict) else value[:MOST_PARTS]
        parts = (
            [": ".join(shown(part, depth + 1) for part in pair) for pair in pairs]
            if isinstance(value, dict)
            else [shown(part, depth + 1) for part in pairs]
        )
        more = ["..."] if len(value) > MOST_PARTS else []
        brackets = "{}" if isinstance(value, dict) else "[]" if isinstance(value, list) else "()"
        return one_line(brackets[0] + ", ".join([*parts, *more]) + brackets[1])
    if isinstance(value, Kept):
        return "a reference to something outside of its pickle"
    return one_line(f"a {type(value).__name__}")
