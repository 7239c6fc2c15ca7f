"""The command line beneath its commands."""

import sys
from pathlib import Path

import pytest

import sb3_trpo_plus
from sb3_trpo_plus.command_line import opt_in
from tests.command_line.commands import OURSELVES, WITHOUT_OPT_IN, run


def test_module_is_the_same_command(tmp_path: Path) -> None:
    assert "usage: sb3-trpo-plus COMMAND" in run(sys.executable, "-m", "sb3_trpo_plus", "--help", cwd=tmp_path)


def test_unknown_command_and_help(tmp_path: Path) -> None:
    assert "there is no command 'trian'" in run(*OURSELVES, "trian", cwd=tmp_path, fails=True)
    assert "usage: sb3-trpo-plus COMMAND" in run(*OURSELVES, cwd=tmp_path)


def test_help_and_version_change_nothing(tmp_path: Path) -> None:
    before = opt_in.hook_file().read_bytes() if opt_in.is_enabled() else None
    assert run(*OURSELVES, "--version", cwd=tmp_path).strip() == f"sb3-trpo-plus {sb3_trpo_plus.__version__}"
    for command in ("enable", "disable", "status"):
        printed = run(*OURSELVES, command, "--help", cwd=tmp_path)
        assert f"usage: sb3-trpo-plus {command}" in printed
        assert "rl_zoo3" in printed
        assert "unrecognized arguments: --now" in run(*OURSELVES, command, "--now", cwd=tmp_path, fails=True)
    assert (opt_in.hook_file().read_bytes() if opt_in.is_enabled() else None) == before


@pytest.mark.parametrize(
    ("module", "command", "extra"),
    [
        ("rl_zoo3", "train", "zoo"),
        ("rl_zoo3", "report", "zoo"),
        ("seaborn", "all_plots", "zoo"),
        ("moviepy", "record_video", "zoo"),
    ],
)
def test_a_missing_extra_is_named(module: str, command: str, extra: str, tmp_path: Path) -> None:
    without = [sys.executable, "-c", f"import sys; sys.modules[{module!r}] = None; " + WITHOUT_OPT_IN.split("; ", 1)[1]]
    without[-1] = without[-1].format("sb3_trpo_plus.command_line.main")
    if command == "record_video":
        run(*OURSELVES, "train", "--env", "CartPole-v1", "-n", "256", "--eval-freq", "-1", cwd=tmp_path)
    printed = run(*without, command, "--env", "CartPole-v1", cwd=tmp_path, fails=True)
    assert f"pip install 'sb3-trpo-plus[{extra}]'" in printed
    assert "Traceback" not in printed


def test_an_unknown_environment_is_explained(tmp_path: Path) -> None:
    printed = run(*OURSELVES, "train", "--env", "MyEnv-v0", cwd=tmp_path, fails=True)
    assert "MyEnv-v0 not found in gym registry" in printed
    assert "--gym-packages MODULE" in printed
    assert "Traceback" not in printed
