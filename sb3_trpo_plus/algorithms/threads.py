"""Threads: a limit on torch's, by the size of a computation, and a computation in one of its own."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch as th

# Multiplications that a thread must take over to save more time than waking it costs.
PER_THREAD = 2**21
_lock = threading.Lock()
# How many threads of Python are within at_most_useful_threads, and torch's number of threads before the first entered.
_n_lowered = 0
_before = 0


@contextmanager
def at_most_useful_threads(multiplications: int) -> Iterator[None]:
    """
    Limit torch's threads within a ``with`` block to the number that pays off. It is never raised, and restored at the end.

    On processors with many cores torch's default slows down minibatches of small networks.

    :param multiplications: of one pass through the network, at least 0
    """
    global _n_lowered, _before
    with _lock:
        if _n_lowered == 0:
            # A Python thread that enters later would read the number that the first one has lowered.
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


def in_a_thread(compute: Callable[[], None], multiplications: int) -> Callable[[], None]:
    """
    Start a computation in a thread of its own.

    :param compute: is called with no more of torch's threads than are useful
    :param multiplications: of one of its passes, as for :func:`at_most_useful_threads`
    :return: function that waits for the end, and raises what the computation raised
    """

    def with_useful_threads() -> None:
        with at_most_useful_threads(multiplications):
            compute()

    executor = ThreadPoolExecutor(1)
    started = executor.submit(with_useful_threads)
    executor.shutdown(wait=False)
    return started.result
