"""The command line beneath its commands."""

import sys
from pathlib import Path

from tests.command_line.commands import OURSELVES, run


def test_module_is_the_same_command(tmp_path: Path) -> None:
    assert "usage: sb3-trpo-plus COMMAND" in run(sys.executable, "-m", "sb3_trpo_plus", "--help", cwd=tmp_path)


def test_unknown_command_and_help(tmp_path: Path) -> None:
    assert "there is no command 'trian'" in run(*OURSELVES, "trian", cwd=tmp_path, fails=True)
    assert "usage: sb3-trpo-plus COMMAND" in run(*OURSELVES, cwd=tmp_path)
