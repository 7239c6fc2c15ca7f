"""How many threads a computation is worth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th

# Below this many multiplications a thread takes longer to wake than it saves.
PER_THREAD = 2**21


@contextmanager
def at_most_useful_threads(multiplications: int) -> Iterator[None]:
    """
    Let torch use no more threads than the work has use for, and afterwards as many as before.

    Minibatches of small networks are slowed down by the threads that torch would take on a processor of many cores. The
    number is only ever lowered.

    :param multiplications: of one pass through the network, at least 0
    """
    before = th.get_num_threads()
    useful = max(1, min(before, multiplications // PER_THREAD))
    if useful == before:
        yield
        return
    th.set_num_threads(useful)
    try:
        yield
    finally:
        th.set_num_threads(before)
