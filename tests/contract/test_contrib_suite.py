"""sb3-contrib's own tests that name TRPO, with our class in place of theirs."""

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

PLUGIN = """
import sb3_contrib
import sb3_trpo_plus

sb3_contrib.TRPO = sb3_trpo_plus.TRPO
"""


def test_sb3_contribs_tests_of_trpo_pass_with_ours(tmp_path: Path) -> None:
    requirement = f"sb3-contrib=={version('sb3-contrib')}"
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "sb3-contrib", "-d", str(tmp_path)]
    outcome = subprocess.run([*download, requirement], capture_output=True, text=True)
    archives = list(tmp_path.glob("*.tar.gz"))
    if not archives:
        pytest.skip(f"the source distribution of {requirement} can't be downloaded here: {outcome.stderr[-200:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "ours_for_theirs.py").write_text(PLUGIN)
    tests = next(tmp_path.glob("sb3_contrib-*/tests"))
    named = [file.name for file in tests.glob("test_*.py") if re.search(r"\bTRPO\b", file.read_text())]
    # Run from the tests' folder, so that the installed sb3_contrib is imported and not the one beside them.
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "ours_for_theirs",
            "-p",
            "no:cacheprovider",
            "-k",
            "TRPO or trpo",
            *named,
        ],
        cwd=tests,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None
    assert int(passed[1]) >= 20
