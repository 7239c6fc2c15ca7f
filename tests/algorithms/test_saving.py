"""A save of a model writes all of it or nothing."""

import io
import os
import resource
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_trpo_plus import TRPO
from tests.algorithms.members import MEMBERS, make
from tests.files.test_atomic import in_a_child

OBSERVATIONS = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)


def acts_as(model: Any, file: Path) -> bool:
    loaded = type(model).load(file, trust=True)
    return all(np.array_equal(a, b) for a, b in zip(*(m.policy.state_dict().values() for m in (model, loaded)), strict=True))


@pytest.mark.parametrize("member", ["trpo", "npg", "adaptive", "vine"])
def test_attribute_that_cannot_be_saved_is_named(member: str, tmp_path: Path) -> None:
    assert member in MEMBERS
    model, file = make(member), tmp_path / "model.zip"
    model.save(file)
    before = file.read_bytes()
    model.harmless, model.lock = lambda: None, threading.Lock()
    stream = io.BytesIO(b"untouched")
    for place in (file, str(tmp_path / "other"), stream):
        with pytest.raises(
            TypeError, match=rf"{type(model).__name__}\.save: the attribute lock, a lock, .*exclude=\['lock'\]"
        ):
            model.save(place)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
    assert stream.getvalue() == b"untouched"
    model.save(file, exclude=["lock"])
    assert acts_as(model, file)


def test_disk_full(tmp_path: Path) -> None:
    """A file-size limit cuts the write off as a full disk does; SB3's save leaves 1000 bytes of a model."""
    model, other, file = make("trpo"), make("trpo", seed=5), tmp_path / "model.zip"
    model.save(file)

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        other.save(file)

    assert in_a_child(save) == 27  # EFBIG
    assert acts_as(model, file)
    assert list(tmp_path.iterdir()) == [file]


def test_removed_folder(tmp_path: Path) -> None:
    model = make("trpo")

    def save() -> None:
        os.chdir(tmp_path)
        tmp_path.rmdir()
        model.save("model")

    assert in_a_child(save) == 2  # ENOENT


@pytest.mark.parametrize("path", ["/proc/model.zip", "/proc/no/such/folder/model.zip"])
@pytest.mark.filterwarnings("ignore:Path '/proc")
def test_proc(path: str) -> None:
    with pytest.raises(OSError, match="/proc"):
        TRPO("MlpPolicy", "CartPole-v1").save(path)
