"""Environments that raise, hang or end their process are named, and the others are well."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.envs.vec.same import Telling, same

ACTIONS = np.zeros((4, 2), np.float32)


class MineError(Exception):
    """Can't be unpickled, since its constructor takes more than it hands on."""

    def __init__(self, number: int, words: str) -> None:
        super().__init__(words)


class Failing(Telling):
    """Fails in a way, in its first step unless that is another place."""

    def __init__(self, way: str | None = None) -> None:
        super().__init__("dict" if way == "key" else "box")
        if way == "constructor":
            raise KeyError("in the constructor")
        self.way = way
        self.lock = threading.Lock()

    def reset(self, **kwargs: Any) -> Any:
        if self.way == "reset":
            raise FileNotFoundError(2, "in reset")
        observation, info = super().reset(**kwargs)
        return observation, {**info, "lock": self.lock} if self.way == "info of a reset" else info

    def step(self, action: Any) -> Any:
        observation, reward, _, _, info = super().step(action)
        terminated = False
        match self.way:
            case "raises":
                raise ZeroDivisionError("in step")
            case "raises its own":
                raise MineError(1, "in step")
            case "raises what only it knows":
                raise type("LocalError", (Exception,), {})("in step")
            case "exits":
                sys.exit(7)
            case "ends":
                os._exit(8)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hangs":
                time.sleep(1000)
            case "shape":
                observation = np.zeros(5, np.float32)
            case "dtype":
                observation = np.array(["a"] * 3)
            case "key":
                observation = {"a": 0}
            case "info":
                info = {"lock": self.lock}
            case "last info":
                info, terminated = {"lock": self.lock}, True
        return observation, reward, terminated, False, info

    def close(self) -> None:
        if self.way == "close":
            raise ValueError("in close")


def failing(way: str | None, index: int = 2) -> list[Any]:
    return [partial(Failing, way if one == index else None) for one in range(4)]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize(
    ("way", "kind", "words"),
    [
        ("raises", ZeroDivisionError, "in step"),
        ("raises its own", RuntimeError, r"MineError: in step"),
        ("raises what only it knows", RuntimeError, r"LocalError: in step"),
        ("shape", ValueError, "broadcast"),
        ("dtype", ValueError, "could not convert"),
        ("info", TypeError, "'lock': .* can't be pickled"),
        ("last info", TypeError, "'lock': .* can't be pickled"),
    ],
)
@pytest.mark.parametrize("index", [0, 2, 3])
def test_a_step_that_raises_is_named_and_all_can_be_reset(
    workers: Callable[..., Any], way: str, kind: Any, words: str, index: int
) -> None:
    env, well = workers(failing(way, index)), workers(failing(None))
    env.reset()
    for _ in range(2):
        with pytest.raises(kind, match=words) as caught:
            env.step(ACTIONS)
        process = env.call_in(index, lambda one: os.getpid())
        assert caught.value.__notes__ == [f"From environment {index} (worker {index // 2}, process {process})"]
        assert "line" in str(caught.value.__cause__)
    env.set_attr("way", None)
    for one in (env, well):
        one.seed(0)
        one.set_attr("n_resets", 0)
    assert same(env.reset(), well.reset())
    assert same(env.step(ACTIONS), well.step(ACTIONS))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize(
    ("way", "kind", "words"),
    [("reset", FileNotFoundError, "in reset"), ("info of a reset", TypeError, "can't be pickled")],
)
def test_a_reset_that_raises_is_named(workers: Callable[..., Any], way: str, kind: Any, words: str) -> None:
    env = workers(failing(way))
    with pytest.raises(kind, match=words) as caught:
        env.reset()
    assert caught.value.__notes__[0].startswith("From environment 2 (worker 1, process ")
    env.set_attr("way", None, 2)
    env.reset()
    env.step(ACTIONS)


def test_a_missing_part_of_an_observation_is_named(workers: Callable[..., Any]) -> None:
    env = workers([partial(Failing, "key")] * 2)
    env.reset()
    with pytest.raises(KeyError):
        env.step(ACTIONS[:2])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
def test_a_constructor_that_raises_is_named_and_leaves_no_process(workers: Callable[..., Any]) -> None:
    children = _children()
    with pytest.raises(KeyError, match="in the constructor") as caught:
        workers(failing("constructor", 1))
    assert caught.value.__notes__[0].startswith("From environment 1 (worker 0, process ")
    assert _children() == children


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.parametrize(
    ("way", "how", "start_method"),
    [
        ("killed", "was ended by SIGKILL", "fork"),
        ("exits", "ended with exit code 7", "fork"),
        ("ends", "ended with exit code 8", "fork"),
        ("killed", "was ended by SIGKILL", "forkserver"),
    ],
)
def test_a_process_that_ends_is_named(workers: Callable[..., Any], way: str, how: str, start_method: str) -> None:
    env = workers(failing(way), 2, start_method)
    env.reset()
    process = env.call_in(3, lambda one: os.getpid())
    for use in (lambda: env.step(ACTIONS), env.reset, lambda: env.get_attr("way"), lambda: env.step(ACTIONS)):
        with pytest.raises(EOFError, match=rf"worker 1 \(process {process}, environments 2 to 3\) any more, it {how}"):
            use()
    assert env.get_attr("way", [0, 1]) == [None, None]


def test_a_process_that_was_killed_between_two_steps_is_named(workers: Callable[..., Any]) -> None:
    env = workers(failing(None), 4)
    env.reset()
    process = env.call_in(0, lambda one: os.getpid())
    # What a cluster sends to all processes before it kills them does not stop the main process from using it.
    os.kill(process, signal.SIGTERM)
    env.step(ACTIONS)
    os.kill(process, signal.SIGKILL)
    with pytest.raises(EOFError, match=r"environment 0\) any more, it was ended by SIGKILL"):
        env.step(ACTIONS)


def test_a_process_that_hangs_is_named_and_killed(workers: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_trpo_plus.envs.vec.process.PATIENCE", 0.2)
    env = workers(failing("hangs"), timeout=0.5)
    env.reset()
    process = env.call_in(2, lambda one: os.getpid())
    for use in (lambda: env.step(ACTIONS), env.reset, lambda: env.env_method("add", 1, indices=2)):
        with pytest.raises(TimeoutError, match=rf"worker 1 \(process {process}, environments 2 to 3\) within 0.5 s"):
            use()
    env.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_late_answer_is_not_taken_for_another(workers: Callable[..., Any]) -> None:
    env = workers([Slow] * 2, timeout=0.4)
    env.reset()
    env.set_attr("delay", 0.6)
    with pytest.raises(TimeoutError):
        env.step(ACTIONS[:2])
    time.sleep(0.5)
    assert env.env_method("add", 2) == [2 + n_resets for n_resets in env.get_attr("n_resets")]


class Slow(Telling):
    delay = 0.0

    def step(self, action: Any) -> Any:
        time.sleep(self.delay)
        return super().step(action)


def test_what_can_not_be_had_of_an_environment(workers: Callable[..., Any]) -> None:
    env = workers(failing(None))
    with pytest.raises(TypeError, match="can't be pickled, and so not be sent"):
        env.get_attr("lock")
    with pytest.raises(AttributeError, match="nothing"):
        env.get_attr("nothing")
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        env.env_method("fail", ZeroDivisionError("division by zero"), indices=1)
    with pytest.raises(IndexError):
        env.get_attr("way", 4)
    with pytest.raises(TypeError, match="pickle"):
        env.set_attr("value", threading.Lock())
    assert env.has_attr("lock")
    assert env.get_attr("way") == [None] * 4


def test_actions_of_too_few_environments(workers: Callable[..., Any]) -> None:
    env = workers(failing(None))
    env.reset()
    with pytest.raises(IndexError):
        env.step(ACTIONS[:3])
    env.step(ACTIONS)


@pytest.mark.parametrize("n_workers", [1, 2])
def test_an_environment_for_all_is_refused(workers: Callable[..., Any], n_workers: int) -> None:
    env = Telling()
    with pytest.raises(ValueError, match="the same one twice"):
        workers([lambda: env] * 4, n_workers)


@pytest.mark.parametrize(
    ("space", "kind"),
    [
        (gym.spaces.Text(3), TypeError),
        (gym.spaces.Dict(a=gym.spaces.Dict(b=gym.spaces.Discrete(2))), NotImplementedError),
        (gym.spaces.Dict(a=gym.spaces.Text(3)), TypeError),
    ],
)
def test_observations_that_are_no_arrays_are_refused(workers: Callable[..., Any], space: Any, kind: Any) -> None:
    class Odd(Telling):
        observation_space = space

        def __init__(self) -> None:
            self.action_space = gym.spaces.Discrete(2)
            self.render_mode = None

    with pytest.raises(kind):
        workers([Odd])


def test_a_closed_one_says_so(workers: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> None:
    env = workers(failing("close"))
    env.reset()
    for _ in range(2):
        env.close()
    assert "ValueError: in close" in capfd.readouterr().err
    for use in (env.reset, lambda: env.step(ACTIONS), lambda: env.get_attr("way")):
        with pytest.raises(RuntimeError, match="is closed"):
            use()
