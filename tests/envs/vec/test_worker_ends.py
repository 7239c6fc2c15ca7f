"""``WorkerVecEnv`` leaves nothing behind: no process, no open file, no shared memory, however the main process ends."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_trpo_plus.envs.vec.workers import WorkerVecEnv
from tests.envs.vec.same import Telling

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")

# Prints the workers' ids once they step; then comes what the test adds.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from sb3_trpo_plus.envs.vec import worker
from sb3_trpo_plus.envs.vec.workers import WorkerVecEnv
from tests.envs.vec.same import Telling

# Inherited by the workers that are forked.
worker.PATIENCE = 1.0

class Closing(Telling):
    hangs = False

    def __init__(self, file):
        super().__init__()
        self.file = file

    def step(self, action):
        time.sleep(1000 if self.hangs else 0.01)
        return super().step(action)

    def close(self):
        Path(self.file).touch()

def process(env):
    return os.getpid()

def make(name, start_method):
    env = WorkerVecEnv([lambda index=index: Closing(f"{name}{index}") for index in range(3)], 2, start_method)
    env.reset()
    env.step(np.zeros((3, 2), np.float32))
    print(*{env.call_in(index, process) for index in range(3)}, flush=True)
    return env

def main(start_method):
    env = make("a", start_method)
    other = make("b", start_method)
    print("ready", flush=True)
    for _ in range(6000):
        env.step(np.zeros((3, 2), np.float32))
        ENDS

if __name__ == "__main__":
    main(sys.argv[1])
"""


def started(folder: Path, ends: str, start_method: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A script that has made two of them, in a group of processes of its own, and the ids of their workers."""
    (folder / "script.py").write_text(SCRIPT.replace("ENDS", ends))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path[1:]])}
    process = subprocess.Popen(
        [sys.executable, "script.py", start_method],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    workers = [int(number) for _ in range(2) for number in process.stdout.readline().split()]
    assert len(workers) == 4
    assert process.stdout.readline() == "ready\n"
    return process, workers


def is_running(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def assert_gone(processes: list[int]) -> None:
    until = time.monotonic() + 30
    while any(map(is_running, processes)):
        assert time.monotonic() < until, "a worker is left"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("ends", "code", "last_line", "start_method"),
    [
        ("break", 0, None, "fork"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero", "fork"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, None, "fork"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, None, "forkserver"),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, None, "fork"),
        ("os._exit(3)", 3, None, "fork"),
        ("os.killpg(os.getpgid(0), signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt", "fork"),
    ],
    ids=["end", "exception", "SIGKILL", "SIGKILL, forkserver", "SIGTERM", "_exit", "interrupt"],
)
def test_the_workers_end_with_the_main_process(
    ends: str, code: int, last_line: str | None, start_method: str, tmp_path: Path
) -> None:
    """Environments are closed, and there is one traceback at most: that of the main process."""
    before = set(os.listdir("/dev/shm"))
    process, workers = started(tmp_path, ends, start_method)
    _, errors = process.communicate(timeout=60)
    assert_gone(workers)
    assert process.returncode == code, errors
    assert errors.count("Traceback") == (last_line is not None), errors
    assert last_line is None or errors.rstrip().endswith(last_line)
    assert {path.name for path in tmp_path.iterdir()} == {"script.py", "a0", "a1", "a2", "b0", "b1", "b2"}
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name.startswith(("psm_", "pym-", "sb3"))}


def test_workers_that_hang_end_with_the_main_process(tmp_path: Path) -> None:
    ends = "env.set_attr('hangs', True); env.step_async(np.zeros((3, 2), np.float32)); os.kill(os.getpid(), signal.SIGKILL)"
    process, workers = started(tmp_path, ends, "fork")
    process.communicate(timeout=60)
    assert_gone(workers)


def test_a_terminal_that_interrupts_a_step(tmp_path: Path) -> None:
    process, workers = started(tmp_path, "pass", "fork")
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert_gone(workers)
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")


def mine() -> tuple[list[str], set[str]]:
    """Open files and children of this process."""
    gc.collect()
    files = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if _is_open(number)]
    return sorted(file.split(":")[0] for file in files), set(
        Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    )


def _is_open(number: str) -> bool:
    return os.path.exists(f"/proc/self/fd/{number}") or os.path.islink(f"/proc/self/fd/{number}")


def use(env: WorkerVecEnv) -> None:
    env.reset()
    env.step(np.zeros((4, 2), np.float32))


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "garbage"])
def test_nothing_is_left_of_those_that_were_made_before(workers: Callable[..., WorkerVecEnv], is_closed: bool) -> None:
    before = None
    for _ in range(4):
        env = WorkerVecEnv([Telling] * 4, 2, "fork")
        use(env)
        if is_closed:
            env.close()
        del env
        assert before in (None, mine())
        before = mine()


def test_files_are_closed_before_it_is_garbage() -> None:
    """But for the memory, which its arrays keep."""
    kept: list[WorkerVecEnv] = []
    counts = []
    for _ in range(3):
        kept.append(WorkerVecEnv([Telling] * 4, 2, "fork"))
        use(kept[-1])
        kept[-1].close()
        counts.append([name for name in mine()[0] if not name.startswith("/memfd")])
    assert counts[0] == counts[1] == counts[2]


def test_a_process_that_was_forked_does_not_end_the_workers(workers: Callable[..., Any]) -> None:
    env = workers([Telling] * 4)
    use(env)
    child = os.fork()
    if child == 0:
        env._end()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    use(env)


def test_a_process_of_multiprocessing_that_does_not_close_it(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_make_and_go, args=(tmp_path,))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def _make_and_go(folder: Path) -> None:
    global kept
    kept = WorkerVecEnv([partial(Touching, folder / str(index)) for index in range(3)], 2, "fork")


class Touching(Telling):
    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def close(self) -> None:
        self.file.touch()


def test_one_whose_connections_others_inherited_ends_at_once(workers: Callable[..., Any]) -> None:
    first = workers([Telling] * 4)
    second = workers([Telling] * 4)
    processes = [first.call_in(index, lambda env: os.getpid()) for index in (0, 3)]
    first.close()
    assert not any(map(is_running, processes))
    use(second)


def test_an_interrupt_during_a_step_does_no_harm(workers: Callable[..., Any]) -> None:
    """As in a notebook: what is done next is not answered by what was interrupted."""
    env = workers([Slow] * 4)
    env.reset()
    for _ in range(3):
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                env.step(np.zeros((4, 2), np.float32))
        finally:
            signal.signal(signal.SIGALRM, before)
        assert env.get_attr("value") == ["a value"] * 4
    env.step(np.zeros((4, 2), np.float32))


class Slow(Telling):
    def step(self, action: Any) -> Any:
        time.sleep(0.15)
        return super().step(action)
