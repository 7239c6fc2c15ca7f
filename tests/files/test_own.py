"""A user's own classes and functions: in the process that saved them, and from another whose ``__main__`` is not ours."""

import copy
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.files import own
from sb3_trpo_plus.files.errors import UnsafeFileError
from tests.conftest import forget_what_was_saved
from tests.files.own_classes import Mine, Steep, agent, falling

ROOT = Path(__file__).parents[2]


def in_memory(model: Any) -> io.BytesIO:
    file = io.BytesIO()
    model.save(file)
    return file


@pytest.fixture(scope="module")
def of_a_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that a script saved, whose classes it calls its own."""
    path = tmp_path_factory.mktemp("script") / "model.zip"
    subprocess.run([sys.executable, "-m", "tests.files.own_classes", str(path)], cwd=ROOT, check=True)
    return path


def test_what_this_process_saved_comes_back_with_its_classes_and_functions(tmp_path: Path) -> None:
    model, amount = agent(), 2.0

    class Here(FlattenExtractor):
        pass

    model.policy_kwargs["features_extractor_class"] = Here
    model.learning_rate = lambda left: amount * left
    model.schedule_of_mine = lambda left: amount + left
    model.save(tmp_path / "model.zip")
    loaded = TRPO.load(tmp_path / "model.zip")
    assert loaded.policy_kwargs == model.policy_kwargs
    assert type(loaded.policy.features_extractor) is Here
    assert (loaded.learning_rate(0.5), loaded.lr_schedule(0.5), loaded.schedule_of_mine(0.5)) == (1.0, 1.0, 2.5)
    assert all(th.equal(one, other) for one, other in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True))
    forget_what_was_saved()
    with pytest.raises(UnsafeFileError, match=r"\.Here, a class .*; its learning_rate needs the function "):
        TRPO.load(tmp_path / "model.zip")


def changed(file: io.BytesIO, change: Any) -> io.BytesIO:
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(parts["data"])
    change(data)
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        for name, part in {**parts, "data": json.dumps(data).encode()}.items():
            archive.writestr(name, part)
    return other


def test_a_pickle_that_differs_in_a_byte_is_anyones() -> None:
    model = agent()
    theirs = agent()
    theirs.learning_rate = lambda left: 1e-3
    of_theirs = in_memory(theirs)
    forget_what_was_saved()
    file = in_memory(model)
    with zipfile.ZipFile(of_theirs) as archive:
        foreign = json.loads(archive.read("data"))["learning_rate"]

    def put_in(data: dict[str, Any]) -> None:
        data["learning_rate"] = foreign

    with pytest.raises(UnsafeFileError, match="is refused: its learning_rate needs the function"):
        TRPO.load(changed(file, put_in))

    def at_another_place(data: dict[str, Any]) -> None:
        data["target_kl"] = data["learning_rate"]

    with pytest.raises(UnsafeFileError, match=r"is refused: its target_kl needs tests\.files\.own_classes\.falling"):
        TRPO.load(changed(file, at_another_place))
    assert TRPO.load(changed(file, lambda data: None)).learning_rate is falling


@pytest.mark.parametrize("before", [b"", b"x" * 100])
def test_stream_is_written_as_before_wherever_it_is_and_whatever_follows(before: bytes) -> None:
    file = io.BytesIO(before + b"y" * 10**6)
    file.seek(len(before))
    agent().save(file)
    end = file.tell()
    assert file.getvalue()[end:] == b"y" * (10**6 + len(before) - end)
    assert TRPO.load(io.BytesIO(file.getvalue()[len(before) : end])).learning_rate is falling


def test_only_the_last_pickles_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "MOST", 20)
    forget_what_was_saved()
    first, last = agent(), agent()
    first.learning_rate = lambda left: 0.125
    file = in_memory(first)
    TRPO.load(file)
    for _ in range(20):
        saved = in_memory(last)
        last.note = [object, _, copy.copy(falling)]
    assert len(own._written) == 20
    TRPO.load(saved)
    with pytest.raises(UnsafeFileError, match="needs the function"):
        TRPO.load(file)


def test_all_that_a_file_needs_is_told_at_once(of_a_script: Path) -> None:
    with pytest.raises(UnsafeFileError) as error:
        TRPO.load(of_a_script)
    found, _, ways = str(error.value).partition(". Pass ")
    needed = "which the file brings its own code for"
    policy_kwargs = " and ".join(
        f"__main__.{name}, a class that the file brings its own code for," for name in ("Mine", "Steep")
    )
    told = found.partition(" is refused: ")[2].split("; ")
    assert sorted(told) == [
        f"its learning_rate needs the function __main__.falling, {needed}",
        f"its policy_kwargs needs {policy_kwargs[:-1]}",
    ]
    assert {"'policy_kwargs': ...", "'learning_rate': ..."} == set(ways.partition("{")[2].partition("}")[0].split(", "))
    assert "safe_globals=[...]" in ways
    assert "trust=True" in ways


def test_classes_that_a_script_called_its_own_are_found_in_their_module(of_a_script: Path) -> None:
    loaded = TRPO.load(of_a_script, safe_globals=[Mine, Steep, falling])
    assert loaded.policy_kwargs == {"features_extractor_class": Mine, "activation_fn": Steep, "net_arch": [4]}
    assert loaded.learning_rate is falling


def test_what_was_given_is_told_beside_what_is_needed(of_a_script: Path) -> None:
    words = r"needs __main__\.Steep, .* \(you gave tests\.files\.own_classes\.Mine, .*own_classes\.falling\)"
    with pytest.raises(UnsafeFileError, match=words) as error:
        TRPO.load(of_a_script, safe_globals=[Mine, falling])
    assert "needs __main__.Mine" not in str(error.value)


def test_a_name_that_two_of_the_callers_have_is_neither(of_a_script: Path) -> None:
    namesake = type("Mine", (FlattenExtractor,), {"__module__": "elsewhere", "__qualname__": "Mine"})
    with pytest.raises(UnsafeFileError, match=r"needs __main__\.Mine, .*own_classes\.Mine, elsewhere\.Mine"):
        TRPO.load(of_a_script, safe_globals=[Mine, namesake, Steep, falling])


def test_a_class_of_a_module_is_no_other_modules(tmp_path: Path) -> None:
    """Only ``__main__`` is anyone's."""
    agent().save(tmp_path / "model.zip")
    forget_what_was_saved()
    namesake = type("Mine", (FlattenExtractor,), {"__module__": "elsewhere", "__qualname__": "Mine"})
    with pytest.raises(UnsafeFileError, match=r"needs tests\.files\.own_classes\.Mine, which is not"):
        TRPO.load(tmp_path / "model.zip", safe_globals=[namesake, Steep, falling])
    assert TRPO.load(tmp_path / "model.zip", safe_globals=[Mine, Steep, falling]).policy_kwargs == agent().policy_kwargs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"safe_globals": Mine}, r"safe_globals must be a list .*, but it is tests\.files\.own_classes\.Mine$"),
        ({"safe_globals": "Mine"}, r"safe_globals must be a list .*, but it is 'Mine'$"),
        ({"safe_globals": ["Mine"]}, r"safe_globals must be a list .*, but it has \['Mine'\]$"),
        ({"trust": "yes"}, r"trust must be True or False, but it is 'yes'$"),
        ({"trust": 1}, r"trust must be True or False, but it is 1$"),
    ],
)
def test_argument_of_another_kind_is_named(arguments: dict[str, Any], words: str, of_a_script: Path) -> None:
    with pytest.raises(TypeError, match=words):
        TRPO.load(of_a_script, **arguments)
