"""How many threads a computation is worth."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th

# Below this many multiplications a thread takes longer to wake than it saves.
PER_THREAD = 2**21
_lock = threading.Lock()
# How many compute with a lowered number now, and what it was before the first of them.
_n_lowered = 0
_before = 0


@contextmanager
def at_most_useful_threads(multiplications: int) -> Iterator[None]:
    """
    Let torch use no more threads than the work has use for, and afterwards as many as before.

    Minibatches of small networks are slowed down by the threads that torch would take on a processor of many cores. The
    number is only ever lowered.

    :param multiplications: of one pass through the network, at least 0
    """
    global _n_lowered, _before
    with _lock:
        if _n_lowered == 0:
            # Later a thread of Python's that is new would find the number that another has lowered.
            _before = th.get_num_threads()
        _n_lowered += 1
        before = _before
    th.set_num_threads(max(1, min(before, multiplications // PER_THREAD)))
    try:
        yield
    finally:
        with _lock:
            _n_lowered -= 1
        th.set_num_threads(before)
