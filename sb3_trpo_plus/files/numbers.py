"""What counts as a number in a file."""

from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    """Whether a value is a real and finite number of Python's or NumPy's, and no truth value."""
    is_real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    # No isfinite, which makes a float of an integer, and of some it can't.
    return is_real and bool(abs(value) <= 1e300)
