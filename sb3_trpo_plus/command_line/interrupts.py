"""Ctrl-C before a command has something to finish: it ends in a line."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_came: list[int] = []


def check() -> None:
    """
    Raise KeyboardInterrupt if there was one.

    Python drops an exception that is raised within a destructor or a callback of a library in C.
    """
    if _came:
        raise KeyboardInterrupt


@contextmanager
def ended_in_a_line() -> Iterator[None]:
    """
    A KeyboardInterrupt ends the program with exit code 130, without a traceback.

    :raises SystemExit: in its place
    """
    # A shell lets what it starts in the background ignore it.
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except BaseException as end:
        # What is interrupted while it is imported may be said to be not installed.
        is_deliberate = isinstance(end, SystemExit) and not isinstance(end.code, str)
        if not isinstance(end, KeyboardInterrupt) and (is_deliberate or not _came):
            raise
        print("\nStopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
        _came.clear()


def _interrupt(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    raise KeyboardInterrupt
