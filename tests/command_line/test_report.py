"""The report of a run: the evaluation, the picture, and what to do without one."""

from pathlib import Path

from tests.command_line.commands import OURSELVES, run


def test_report_evaluates_and_draws(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    printed = run(*OURSELVES, "report", "--env", "MountainCarContinuous-v0", "-n", "3", cwd=folder)
    assert "over 3 episodes" in printed
    picture = folder / "logs/trpo/MountainCarContinuous-v0_1/learning_curve.png"
    assert str(picture.relative_to(folder)) in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


def test_report_evaluates_in_the_environment_of_the_training(tmp_path: Path) -> None:
    arguments = ["--env", "LunarLander-v3", "--env-kwargs", "continuous:True", "-n", "512", "--eval-freq", "-1", "-f", "logs"]
    run(*OURSELVES, "train", *arguments, cwd=tmp_path)
    assert "over 2 episodes" in run(*OURSELVES, "report", "--env", "LunarLander-v3", "-n", "2", cwd=tmp_path)


def test_report_without_a_run_says_what_to_do(tmp_path: Path) -> None:
    printed = run(*OURSELVES, "report", "--env", "CartPole-v1", cwd=tmp_path, fails=True)
    assert "train first, with `sb3-trpo-plus train --algo trpo --env CartPole-v1" in printed
    assert "Traceback" not in printed
