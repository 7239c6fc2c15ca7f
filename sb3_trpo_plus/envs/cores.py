"""How many cores there are for this process."""

import os


def n_cores() -> int:
    """Those that this process may use, where the system tells, of which the machine may have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
