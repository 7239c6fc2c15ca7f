"""Files are replaced as a whole or not at all."""

import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.save_util import save_to_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trpo_plus import load_vec_normalize
from sb3_trpo_plus.files.atomic import path_to_write, save_vec_normalize, write_whole
from tests.conftest import random_env

# Writes two contents in turns, each of one byte throughout, until it is killed.
WRITER = """
import itertools, sys
from sb3_trpo_plus.files.atomic import write_whole
write_whole(sys.argv[1], b"0" * 300_000)
print("begun", flush=True)
for number in itertools.count(1):
    write_whole(sys.argv[1], str(number % 10).encode() * 300_000)
"""


def test_content_and_permissions(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_whole(file, b"one")
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert file.read_bytes() == b"one"
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)
    file.chmod(0o640)
    write_whole(str(file), memoryview(b"two"))
    assert file.read_bytes() == b"two"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "ordinary"]


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to("there/file")
    for content in (b"one", b"two"):
        write_whole(link, content)
        assert link.is_symlink()
        assert (tmp_path / "there" / "file").read_bytes() == content


def test_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        write_whole(pipe, b"through")
        assert reader.communicate()[0] == b"through"
    assert pipe.is_fifo()


def test_killed_while_writing(tmp_path: Path) -> None:
    """A SIGKILL at any moment leaves one of the contents whole, and one other file at most."""
    file = tmp_path / "file"
    draw = np.random.default_rng(0)
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", WRITER, file], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            time.sleep(draw.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        content = file.read_bytes()
        assert len(content) == 300_000
        assert len(set(content)) == 1
        assert {path.name for path in tmp_path.iterdir()} <= {"file", "file.tmp"}


def in_a_child(action: Callable[[], object]) -> int:
    """Run a function in a forked process, whose limits and working folder it may change; the number of the OSError."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            action()
            status = 0
        except OSError as error:
            status = error.errno or 254
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_no_space(tmp_path: Path) -> None:
    """A write that the system cuts off, as a full disk does, leaves the old content, and nothing else."""
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        write_whole(file, b"new" * 1000)

    assert in_a_child(write) == 27  # EFBIG
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_removed_folder(tmp_path: Path) -> None:
    def write() -> None:
        os.chdir(tmp_path)
        tmp_path.rmdir()
        write_whole("file", b"new")

    assert in_a_child(write) == 2  # ENOENT


@pytest.mark.parametrize("path", ["/proc/file", "/proc/self/file", "/dev/full"])
def test_places_that_take_no_file(path: str) -> None:
    with pytest.raises(OSError, match=path) as caught:
        write_whole(path, b"new")
    assert caught.value.filename == path


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match=str(file)):
            write_whole(file, b"new")
    finally:
        tmp_path.chmod(0o700)
    assert file.read_bytes() == b"old"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "a.zip", "b.c", ".d", "e."]), min_size=1, max_size=3),
    st.sets(st.sampled_from(["a", "a.zip", "a.zip_2", "b.c", "a/a.zip"])),
)
def test_path_is_the_one_that_sb3_writes(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], folders: set[str]
) -> None:
    """The same file and the same warnings as SB3's own function, whatever folders are there."""
    found = []
    for write in (save_to_zip_file, lambda path: path_to_write(path, "zip").touch()):
        home = tmp_path_factory.mktemp("home")
        for folder in folders:
            (home / folder).mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            write(home.joinpath(*parts))
        files = sorted(str(file.relative_to(home)) for file in home.rglob("*") if file.is_file())
        found.append((files, [str(one.message).replace(str(home), "") for one in caught]))
    assert found[0] == found[1]


def test_statistics_are_those_that_sb3_saves(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([random_env]))
    env.reset()
    for _ in range(10):
        env.step([env.action_space.sample()])
    save_vec_normalize(env, tmp_path / "vecnormalize.pkl")
    env.save(str(tmp_path / "of_sb3.pkl"))
    assert (tmp_path / "vecnormalize.pkl").read_bytes() == (tmp_path / "of_sb3.pkl").read_bytes()
    loaded = load_vec_normalize(tmp_path / "vecnormalize.pkl", DummyVecEnv([random_env]))
    assert np.array_equal(loaded.obs_rms.mean, env.obs_rms.mean)


def test_statistics_that_cannot_be_pickled(tmp_path: Path) -> None:
    env: Any = VecNormalize(DummyVecEnv([random_env]))
    file = tmp_path / "vecnormalize.pkl"
    save_vec_normalize(env, file)
    before = file.read_bytes()
    env.attribute = lambda: None
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        save_vec_normalize(env, file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
