"""The ``inspect`` command: what a model file or a file of statistics holds, and whether it opens as data."""

import argparse
import sys
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO
from sb3_trpo_plus.files.archive import find
from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.inspection import Inspection, inspect_model
from sb3_trpo_plus.files.models import TOLD_BY, read_model
from sb3_trpo_plus.files.statistics import names_in_statistics, read_vec_normalize

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
        sys.exit(str(error))
    print(f"\nVerdict: {verdict or 'opens as data, and runs nothing'}")
    if verdict:
        sys.exit(1)


def _statistics(path: Path) -> str | None:
    print("Names in the pickle:")
    for name in names_in_statistics(path):
        print(f"  {name}")
    try:
        statistics = read_vec_normalize(path)
    except ModelFileError as error:
        return str(error)
    print(f"Observations:       {statistics.observation_space}")
    print(f"Normalised:         observations {statistics.norm_obs}, rewards {statistics.norm_reward}")
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
    print(f"Algorithm:          {algorithm or 'not told by its attributes'}")
    print(f"Saved by SB3:       {inspection.sb3_version or 'not said'}")
    print("Members:")
    for name, size in inspection.sizes.items():
        print(f"  {name:<28} {size:>12,} bytes")
    print("Attributes:")
    for name, words in sorted(inspection.attributes.items()):
        print(f"  {name:<28} {words}")
    print("Parameters of the policy:")
    for name, shape in inspection.shapes.items():
        print(f"  {name:<44} {' x '.join(map(str, shape)) or 'one number'}")
    print("Names in its pickles:")
    for place, names in sorted(inspection.names.items()):
        print(f"  {place:<28} {', '.join(names) or 'none'}")
