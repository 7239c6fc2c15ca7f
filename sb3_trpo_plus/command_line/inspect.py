"""The ``inspect`` command: what a model file or a file of statistics holds, and whether it opens as data."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO
from sb3_trpo_plus.files.archive import find
from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.inspection import Inspection, beyond_the_lists, inspect_model
from sb3_trpo_plus.files.models import TOLD_BY, read_model
from sb3_trpo_plus.files.statistics import names_in_statistics, read_vec_normalize
from sb3_trpo_plus.files.words import one_line

LONGEST_LINE = 497
MOST_TOLD = 5
LOADED_BY: dict[str, type[BaseAlgorithm]] = {cls.__name__: cls for cls in (VineTRPO, NPG, PPOPenalty, TRPO)}


def inspect(arguments: list[str]) -> None:
    """
    The ``inspect`` command.

    :param arguments: of the command line
    :raises SystemExit: with exit code 1 if a file is refused, and with a line if there is none
    """
    parser = argparse.ArgumentParser("sb3-trpo-plus inspect", description=__doc__)
    parser.add_argument("file", type=Path, help="a saved model (.zip) or VecNormalize's statistics (.pkl)")
    path = parser.parse_args(arguments).file
    try:
        names = _statistics(path) if path.suffix == ".pkl" else _model(path)
    except FileNotFoundError as error:
        sys.exit(one_line(str(error), LONGEST_LINE))
    except UnsafeFileError as error:
        _refuse(error.found, f"{error.ways}. The commands have --trust for that" if error.ways else "")
    except ModelFileError as error:
        _refuse(error.found, error.ways)
    except Exception as error:  # of a file that is made to break its reader: whatever it is, there must be a verdict
        _refuse(f"can't be read: {type(error).__name__}: {error}")
    print()
    others = beyond_the_lists(names)
    if others:
        told = ", ".join([*others[:MOST_TOLD], *(["..."] if len(others) > MOST_TOLD else [])])
        _say(f"Verdict: opens as data here, and runs nothing. SB3 and others that unpickle it would import or run {told}")
    else:
        _say("Verdict: opens as data, and runs nothing")


def _say(text: str) -> None:
    """What a stranger's file has, such as names, on a line that can't pass for others."""
    print(one_line(text, LONGEST_LINE))


def _table(title: str, rows: Iterable[tuple[str, str]], width: int = 28) -> None:
    _say(title)
    for name, words in rows:
        _say(f"  {name:<{width}} {words}")


def _refuse(verdict: str, ways: str = "") -> NoReturn:
    print()
    if ways:
        _say(f"In Python: {ways}")
    _say(f"Verdict: {verdict}")
    sys.exit(1)


def _statistics(path: Path) -> list[str]:
    """Print what they are; the names in them."""
    names = names_in_statistics(path)
    _say("Names in the pickle:")
    for name in names:
        _say(f"  {name}")
    statistics = read_vec_normalize(path)
    _say(f"Observations:       {statistics.observation_space}")
    _say(f"Normalised:         observations {statistics.norm_obs}, rewards {statistics.norm_reward}")
    return names


def _model(path: Path) -> list[str]:
    """Print what it is; the names in it."""
    inspection = inspect_model(find(path))
    algorithm = TOLD_BY.get(inspection.told_by or "")
    _print(inspection, algorithm)
    if algorithm not in LOADED_BY:
        raise ModelFileError(f"not an algorithm of this package: {algorithm or 'no attribute tells which'}")
    try:
        read_model(find(path), LOADED_BY[algorithm], inspection.told_by or "", {})
    except UnsafeFileError:
        raise
    except ModelFileError as error:
        raise ModelFileError(f"runs nothing, but does not load: {error.found}", error.ways) from error
    return [name for names in inspection.names.values() for name in names]


def _print(inspection: Inspection, algorithm: str | None) -> None:
    _say(f"Algorithm:          {algorithm or 'not told by its attributes'}")
    _say(f"Saved by SB3:       {inspection.sb3_version or 'not said'}")
    _table("Members:", ((name, f"{size:>12,} bytes") for name, size in inspection.sizes.items()))
    _table("Attributes:", sorted(inspection.attributes.items()))
    shapes = ((name, " x ".join(map(str, shape)) or "one number") for name, shape in inspection.shapes.items())
    _table("Parameters of the policy:", shapes, width=44)
    names = sorted(inspection.names.items())
    _table("Names in its pickles:", ((place, name) for place, found in names for name in found or ["none"]))
