"""The report of a run: the evaluation, the picture, and what to do without one."""

import re
import shutil
from pathlib import Path

import numpy as np

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


def test_report_takes_the_newest_run_that_has_a_model(trained: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(trained[0] / "logs", tmp_path / "logs")
    (tmp_path / "logs/trpo/MountainCarContinuous-v0_2/MountainCarContinuous-v0").mkdir(parents=True)
    printed = run(*OURSELVES, "report", "--env", "MountainCarContinuous-v0", "-n", "2", cwd=tmp_path)
    assert "Run 2 has no MountainCarContinuous-v0.zip: taking run 1" in printed
    assert "over 2 episodes" in printed
    shown = ["--env", "MountainCarContinuous-v0", "--no-render", "-n", "10"]
    assert "MountainCarContinuous-v0_1" in run(*OURSELVES, "enjoy", *shown, cwd=tmp_path)


def test_report_of_a_shipped_agent_without_logs(trained: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(trained[0] / "logs", tmp_path / "agents", ignore=shutil.ignore_patterns("*.csv", "*.npz", "args.yml"))
    printed = run(*OURSELVES, "report", "--env", "MountainCarContinuous-v0", "-f", "agents", "-n", "2", cwd=tmp_path)
    assert "over 2 episodes" in printed
    assert "Learning curve: none (no episodes and no evaluations were logged)" in printed


def test_the_return_is_not_lost_when_the_picture_fails(trained: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(trained[0] / "logs", tmp_path / "logs")
    (tmp_path / "logs/trpo/MountainCarContinuous-v0_1/evaluations.npz").write_bytes(b"cut off")
    printed = run(*OURSELVES, "report", "--env", "MountainCarContinuous-v0", "-n", "2", cwd=tmp_path)
    assert "over 2 episodes" in printed
    assert "Learning curve: none (" in printed


def test_environment_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=50)\n"
    )
    mine = ["--env", "Mine-v0", "--gym-packages", "my_envs"]
    printed = run(*OURSELVES, "train", *mine, "-n", "512", cwd=tmp_path)
    assert "No entry for Mine-v0: `default`" in printed
    # At least five evaluations, where RL Zoo would have made none.
    with np.load(tmp_path / "logs/trpo/Mine-v0_1/evaluations.npz") as evaluations:
        assert len(evaluations["timesteps"]) >= 5
    assert "over 2 episodes" in run(*OURSELVES, "report", *mine, "-n", "2", cwd=tmp_path)


def test_plots_without_a_screen_say_where_they_are(trained: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(trained[0] / "logs", tmp_path / "logs")
    runs = ["-a", "trpo", "-e", "MountainCarContinuous", "-f", "logs"]
    for command, arguments in (("plot_train", ["-w", "2"]), ("all_plots", [])):
        printed = run(*OURSELVES, command, *runs, *arguments, cwd=tmp_path)
        (picture,) = re.findall(r"There is no screen: saved (.*\.png)", printed)
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
    (tmp_path / "logs/trpo/Mine-MountainCarContinuous-v0_1").symlink_to("MountainCarContinuous-v0_1")
    assert "saved" in run(
        *OURSELVES, "all_plots", "-a", "trpo", "-e", "Mine/MountainCarContinuous-v0", "-f", "logs", cwd=tmp_path
    )
    assert "nothing to draw" in run(*OURSELVES, "plot_train", *runs, "-w", "1000", cwd=tmp_path)
