"""Schedules as words in RL Zoo's files."""

from typing import Any

from stable_baselines3.common.utils import LinearSchedule

from sb3_trpo_plus.algorithms.arguments import SCHEDULES


def linear_schedule(name: str, words: str) -> LinearSchedule:
    """
    A linear schedule from its description in a hyperparameter file.

    :param name: of the argument, for the error message
    :param words: ``lin_0.02``: from 0.02 to 0, as in RL Zoo; ``lin_0.99_0.997``: from the first number to the second
    :raises ValueError: the description has another form
    """
    kind, *ends = words.split("_")
    try:
        start, end = map(float, ends if len(ends) == 2 else [*ends, "0"])
    except ValueError:
        kind = ""
    if kind != "lin":
        raise ValueError(f"{name} must be a number, lin_START or lin_START_END, but it is {words!r}")
    return LinearSchedule(start, end, 1.0)


def make_schedules(settings: dict[str, Any]) -> None:
    """
    Replace the words of this package's arguments; RL Zoo does so with ``learning_rate``.

    :param settings: of an entry, changed in place
    :raises ValueError: words that describe no schedule
    """
    for name in SCHEDULES:
        if isinstance(settings.get(name), str):
            settings[name] = linear_schedule(name, settings[name])
