"""The main process's side of a worker process."""

import multiprocessing
import os
import pickle
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import reduction
from typing import Any, NoReturn

import cloudpickle

from sb3_trpo_plus.envs.notes import add_note
from sb3_trpo_plus.envs.vec.shared import Layout
from sb3_trpo_plus.envs.vec.worker import PATIENCE, EnvFn, Failure, work


class WorkerTraceback(Exception):
    """Stands for the traceback of an exception in a worker process, as the cause of the same exception in this process."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


class WorkerProcess:
    """
    A worker process, which answers one request after another.

    :param number: for messages
    :param indices: of its environments
    :param env_fns: make these
    :param start_method: of ``multiprocessing``
    :param before: workers of the same ``VecEnv`` that were started before
    """

    def __init__(
        self,
        number: int,
        indices: range,
        env_fns: Sequence[EnvFn],
        start_method: str,
        before: Sequence["WorkerProcess"],
    ) -> None:
        self.number, self.indices = number, indices
        context = multiprocessing.get_context(start_method)
        self._connection, theirs = context.Pipe()
        forked = start_method == "fork"
        others = [*(worker._connection for worker in before), self._connection] if forked else []
        functions = env_fns if forked else cloudpickle.dumps(env_fns)
        # As a daemon it is ended with the main process where nothing else could do it.
        self._process = context.Process(target=work, args=(theirs, others, functions, indices.start), daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        self._id = self._process.pid
        theirs.close()
        self._poll = select.poll()
        self._poll.register(self._connection.fileno(), select.POLLIN)
        # It begins with an answer: what it has made.
        self._owes_answer = True
        # Whether a request or an answer is under way, as it remains where an interrupt from the keyboard came.
        self._is_cut = False

    def __str__(self) -> str:
        first, last = self.indices[0], self.indices[-1]
        environments = f"environment {first}" if first == last else f"environments {first} to {last}"
        return f"worker {self.number} (process {self._id}, {environments})"

    def share(self, layout: Layout, file: int) -> None:
        """
        Give it the memory that it shares with the main process.

        :param layout: of the arrays
        :param file: descriptor of the memory
        """
        try:
            self._connection.send_bytes(pickle.dumps(layout))
            reduction.send_handle(self._connection, file, self._id)
        except ConnectionError as error:
            self._raise_ended(error)

    def ask(self, request: bytes) -> None:
        """
        :param request: for what :meth:`receive` returns; there must be no answer to an earlier one, see :meth:`settle`
        :raises EOFError: the process has ended
        """
        if self._connection.closed:
            raise RuntimeError("This WorkerVecEnv is closed, and its environments with it")
        self._refuse_cut()
        self._is_cut = True
        try:
            self._connection.send_bytes(request)
        except ConnectionError as error:
            self._raise_ended(error)
        self._is_cut, self._owes_answer = False, True

    def receive(self, timeout: float | None) -> Any:
        """
        :param timeout: in seconds
        :return: the answer
        :raises EOFError: the process has ended
        :raises TimeoutError: the answer has not come in time
        :raises Exception: that of an environment
        """
        answer = pickle.loads(self._receive(timeout))
        if isinstance(answer, Failure):
            self._raise(answer)
        return answer

    def settle(self, timeout: float | None) -> None:
        """Drop the answer that has not been received because of an exception, if there is one."""
        if self._owes_answer and not self._connection.closed:
            self._receive(timeout)

    def _receive(self, timeout: float | None) -> bytes:
        self._refuse_cut()
        # The long wait is here, where an interrupt does no harm.
        if not self._poll.poll(None if timeout is None else 1000 * timeout):
            raise TimeoutError(f"No answer of {self} within {timeout:g} s: one of its environments hangs, or takes longer")
        self._is_cut = True
        try:
            answer = self._connection.recv_bytes()
        except (EOFError, ConnectionError) as error:
            self._raise_ended(error)
        self._is_cut = self._owes_answer = False
        return answer

    def _refuse_cut(self) -> None:
        if self._is_cut:
            raise RuntimeError(f"What was said to or by {self} was interrupted: close this WorkerVecEnv, and make a new one")

    def _raise(self, failure: Failure) -> NoReturn:
        error: Exception = RuntimeError(failure.words)
        if failure.pickled is not None:
            # Its class may only be known to the worker.
            with suppress(Exception):
                error = pickle.loads(failure.pickled)
        where = (
            str(self) if failure.index is None else f"environment {failure.index} (worker {self.number}, process {self._id})"
        )
        add_note(error, f"From {where}")
        raise error from WorkerTraceback(failure.trace)

    def _raise_ended(self, cause: Exception) -> NoReturn:
        self._is_cut = False
        # A connection breaks a moment before its process ends.
        self._process.join(PATIENCE)
        code = self._process.exitcode
        if code is None:
            how = "closed its connection"
        else:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise EOFError(
            f"There is no {self} any more, it {how}; what it raised, if it did, is printed above. Close this WorkerVecEnv, "
            "and make a new one"
        ) from cause


def end(workers: Sequence[WorkerProcess]) -> None:
    """
    Let the workers close their environments and end; those that don't are killed.

    :param workers: also such as have ended
    """
    for worker in workers:
        # Others may have inherited this end of the connection, so that the worker would not notice that it is closed here.
        with suppress(OSError), socket.socket(fileno=os.dup(worker._connection.fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)
        worker._connection.close()
    until = time.monotonic() + PATIENCE
    try:
        for worker in workers:
            worker._process.join(max(0.0, until - time.monotonic()))
    finally:
        for worker in workers:
            worker._process.kill()
            worker._process.join()
            worker._process.close()
