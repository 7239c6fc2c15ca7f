"""The number of threads is lowered for small work, and put back."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch as th

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.algorithms.threads import PER_THREAD, at_most_useful_threads
from sb3_trpo_plus.critic.plain_fit import PlainFit
from tests.conftest import collect, random_env


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = th.get_num_threads()
    th.set_num_threads(4)
    yield
    th.set_num_threads(before)


@pytest.mark.parametrize(
    ("multiplications", "threads"), [(0, 1), (PER_THREAD, 1), (2 * PER_THREAD, 2), (3.5 * PER_THREAD, 3), (99 * PER_THREAD, 4)]
)
def test_threads_follow_the_work_up_to_the_users_number(multiplications: float, threads: int) -> None:
    with at_most_useful_threads(int(multiplications)):
        assert th.get_num_threads() == threads
    assert th.get_num_threads() == 4


def test_threads_are_put_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), at_most_useful_threads(0):
        raise ZeroDivisionError
    assert th.get_num_threads() == 4


class Worker:
    """A thread of Python's that goes on when it is told to; what it raises is raised where it is waited for."""

    def __init__(self, function: Callable[[Callable[[], None]], Any]) -> None:
        self.function, self.error = function, list[BaseException]()
        self.may_go, self.waits = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self._wait()

    def _run(self) -> None:
        try:
            self.function(self._pause)
        except BaseException as error:
            self.error.append(error)
        self.waits.release()

    def _pause(self) -> None:
        self.waits.release()
        assert self.may_go.acquire(timeout=10)

    def _wait(self) -> None:
        assert self.waits.acquire(timeout=10)
        if self.error:
            raise self.error[0]

    def go_on(self) -> None:
        self.may_go.release()
        self._wait()


def lowering(multiplications: int, seen: list[int]) -> Callable[[Callable[[], None]], None]:
    def run(pause: Callable[[], None]) -> None:
        with at_most_useful_threads(multiplications):
            seen.append(th.get_num_threads())
            pause()
            seen.append(th.get_num_threads())
        seen.append(th.get_num_threads())
        pause()
        # Not one that a context manager has left to this thread alone.
        seen.append(th.get_num_threads())

    return run


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("works", [(0, 0), (0, 2 * PER_THREAD), (2 * PER_THREAD, 0), (0, 99 * PER_THREAD)])
def test_threads_whose_uses_overlap_end_with_the_users_number(works: tuple[int, int], first: int) -> None:
    """Two trainers in one process: the second begins while the first one's number is lowered, and either may end first."""
    seen: tuple[list[int], list[int]] = [], []
    workers = [Worker(lowering(work, of_one)) for work, of_one in zip(works, seen, strict=True)]
    workers[first].go_on()
    workers[1 - first].go_on()
    assert th.get_num_threads() == 4
    assert [of_one[2] for of_one in seen] == [4, 4]
    for worker in workers:
        worker.go_on()
    new: list[int] = []
    Worker(lambda pause: new.append(th.get_num_threads()))
    assert new == [4], "a thread that begins now has the user's number, too"
    assert [of_one[0] for of_one in seen] == [max(1, min(4, work // PER_THREAD)) for work in works]


def test_number_that_is_set_in_between_is_the_users_next_one() -> None:
    """The number before the first of them is put back, not one of an earlier training."""
    with at_most_useful_threads(0):
        pass
    th.set_num_threads(3)
    with at_most_useful_threads(0):
        assert th.get_num_threads() == 1
    assert th.get_num_threads() == 3


def test_overlapping_errors_put_the_number_back() -> None:
    def fail(pause: Callable[[], None]) -> None:
        with contextlib.suppress(ZeroDivisionError), at_most_useful_threads(0):
            pause()
            raise ZeroDivisionError

    workers = [Worker(fail) for _ in range(2)]
    for worker in workers:
        worker.go_on()
    assert th.get_num_threads() == 4
    with at_most_useful_threads(2 * PER_THREAD):
        assert th.get_num_threads() == 2
    assert th.get_num_threads() == 4


def test_small_critics_are_fitted_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    run = PlainFit.run

    def watched(self: PlainFit) -> None:
        seen.append(th.get_num_threads())
        run(self)

    monkeypatch.setattr(PlainFit, "run", watched)
    collect(TRPO("MlpPolicy", random_env(), n_steps=64, batch_size=64, seed=0)).train()
    assert seen == [1]
    assert th.get_num_threads() == 4
