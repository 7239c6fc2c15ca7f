"""Files that would run code, take a machine down, or load as what they are not: refused, with our errors, and nothing done."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.files.hostile import KINDS, MEMORY, OPENS, SECONDS

ROOT = Path(__file__).parents[2]


@cache
def results() -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.files.hostile"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, Any]] = json.loads(printed)
    return found


def test_there_are_at_least_a_hundred_kinds_and_each_was_tried() -> None:
    assert len(KINDS) >= 100
    assert set(KINDS) < set(results())


@pytest.mark.parametrize("kind", KINDS)
def test_model_file_does_nothing_and_is_refused(kind: str) -> None:
    result = results()[kind]
    assert (result["did"], result["trace"]) == ([], False)
    assert result["seconds"] < SECONDS
    assert result["bytes"] < MEMORY
    expected = ("opened",) if kind in OPENS else ("UnsafeFileError", "ModelFileError")
    assert result["outcome"] in expected, result
    if kind not in OPENS:
        assert "he given file" in result["words"]


def test_statistics_do_nothing_and_are_refused() -> None:
    tried = {kind: result for kind, result in results().items() if kind not in KINDS}
    assert len(tried) == 8
    for kind, result in tried.items():
        assert (result["did"], result["trace"]) == ([], False), kind
        assert result["outcome"] in ("UnsafeFileError", "ModelFileError"), (kind, result)
