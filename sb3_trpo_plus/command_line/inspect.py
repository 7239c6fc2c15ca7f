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
from sb3_trpo_plus.files.inspection import Inspection, inspect_model
from sb3_trpo_plus.files.models import TOLD_BY, read_model
from sb3_trpo_plus.files.statistics import names_in_statistics, read_vec_normalize
from sb3_trpo_plus.files.words import one_line

LONGEST_LINE = 497
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
        verdict = _statistics(path) if path.suffix == ".pkl" else _model(path)
    except FileNotFoundError as error:
        sys.exit(one_line(str(error), LONGEST_LINE))
    except Exception as error:  # of a file that is made to break its reader: whatever it is, there must be a verdict
        _refuse(f"can't be read: {type(error).__name__}: {error}")
    if verdict:
        _refuse(verdict)
    print()
    _say("Verdict: opens as data, and runs nothing")


def _say(text: str) -> None:
    """What a stranger's file has, such as names, on a line that can't pass for others."""
    print(one_line(text, LONGEST_LINE))


def _table(title: str, rows: Iterable[tuple[str, str]], width: int = 28) -> None:
    _say(title)
    for name, words in rows:
        _say(f"  {name:<{width}} {words}")


def _refuse(verdict: str) -> NoReturn:
    print()
    _say(f"Verdict: {verdict}")
    sys.exit(1)


def _statistics(path: Path) -> str | None:
    _say("Names in the pickle:")
    for name in names_in_statistics(path):
        _say(f"  {name}")
    try:
        statistics = read_vec_normalize(path)
    except ModelFileError as error:
        return str(error)
    _say(f"Observations:       {statistics.observation_space}")
    _say(f"Normalised:         observations {statistics.norm_obs}, rewards {statistics.norm_reward}")
    return None


def _model(path: Path) -> str | None:
    try:
        inspection = inspect_model(find(path))
    except ModelFileError as error:
        return str(error)
    algorithm = TOLD_BY.get(inspection.told_by or "")
    _print(inspection, algorithm)
    if algorithm not in LOADED_BY:
        return f"not an algorithm of this package: {algorithm or 'no attribute tells which'}"
    try:
        read_model(find(path), LOADED_BY[algorithm], inspection.told_by or "", {})
    except UnsafeFileError as error:
        return str(error)
    except ModelFileError as error:
        return f"runs nothing, but does not load: {error}"
    return None


def _print(inspection: Inspection, algorithm: str | None) -> None:
    _say(f"Algorithm:          {algorithm or 'not told by its attributes'}")
    _say(f"Saved by SB3:       {inspection.sb3_version or 'not said'}")
    _table("Members:", ((name, f"{size:>12,} bytes") for name, size in inspection.sizes.items()))
    _table("Attributes:", sorted(inspection.attributes.items()))
    shapes = ((name, " x ".join(map(str, shape)) or "one number") for name, shape in inspection.shapes.items())
    _table("Parameters of the policy:", shapes, width=44)
    names = sorted(inspection.names.items())
    _table("Names in its pickles:", ((place, name) for place, found in names for name in found or ["none"]))
