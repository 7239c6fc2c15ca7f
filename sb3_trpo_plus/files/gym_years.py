"""Unpickling, with all that it may run, of objects that were saved today or with Gym, the predecessor of Gymnasium."""

import io
import pickle
from typing import Any

import numpy as np

from sb3_trpo_plus.files.errors import UnsafeFileError
from sb3_trpo_plus.files.rebuild import rebuilt
from sb3_trpo_plus.files.words import shown

NUMPY_CORE = "numpy._core" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core"


def check_trust(trust: Any) -> None:
    """:raises TypeError: it is neither True nor False, and might be meant as either"""
    if not isinstance(trust, bool):
        raise TypeError(f"trust must be True or False, but it is {shown(trust)}")


def unpickle(pickled: bytes) -> Any:
    """
    The object in a pickle of someone whom the caller trusts.

    :param pickled: of any protocol
    """
    try:
        # Also reads what pickle no longer can: Gym's spaces, and the closures of other Python versions.
        return rebuilt(pickled)
    except UnsafeFileError:
        return GymYearsUnpickler(io.BytesIO(pickled)).load()


class GymYearsUnpickler(pickle.Unpickler):
    """Maps modules of Gym to Gymnasium, and NumPy's internal modules to those of the installed version."""

    def find_class(self, module: str, name: str) -> Any:
        package, _, rest = module.partition(".")
        if package == "gym":
            module = f"gymnasium.{rest}" if rest else "gymnasium"
        for core in ("numpy.core", "numpy._core"):
            if module == core or module.startswith(f"{core}."):
                module = NUMPY_CORE + module.removeprefix(core)
        return super().find_class(module, name)
