"""RL Zoo's ``record_video`` and ``record_training``: films of an agent, and of those of a training one after the other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from sb3_trpo_plus.command_line import scripts
from sb3_trpo_plus.command_line.filming import ffmpeg_command, find_ffmpeg
from sb3_trpo_plus.command_line.opening import FLAG
from sb3_trpo_plus.command_line.runs import asks_for_help, given, newest_run, of_newest_run, with_defaults


def record_video(arguments: list[str]) -> None:
    """
    RL Zoo's ``record_video``.

    :param arguments: of the command line
    """
    arguments, _ = scripts.import_gym_packages(arguments)
    scripts.run("record_video", of_newest_run(arguments), scripts.saved_agent())


def record_training(arguments: list[str]) -> None:
    """
    RL Zoo's ``record_training``.

    :param arguments: of the command line
    """
    trusts = [FLAG] if FLAG in sys.argv else []
    arguments, packages = scripts.import_gym_packages(arguments)
    arguments = with_defaults(arguments)
    if asks_for_help(arguments):
        return scripts.run("record_training", arguments)
    asked = given(arguments)
    exp_id = asked.exp_id or newest_run(asked.folder, asked.algo, asked.env, "*.zip")
    agents = Path(asked.folder, asked.algo, f"{asked.env}_{exp_id}" if exp_id > 0 else "")
    if not any(agents.glob("*.zip")):
        scripts.stop(f"There are no agents in {agents}: `sb3-trpo-plus train --save-freq STEPS` saves some as it goes on")
    ffmpeg = find_ffmpeg("drawtext")
    if ffmpeg is None:
        scripts.stop("There is no ffmpeg with the filter drawtext: `pip install 'sb3-trpo-plus[zoo]'` brings one")

    def call(command: list[str]) -> int:
        """``python -m rl_zoo3.record_video``, by this Python with our algorithms, deterministic only if the user says so."""
        rest = [argument for argument in command[3:] if argument != "--deterministic" or asked.deterministic]
        own = ["--gym-packages", *packages] if packages else []
        status = subprocess.run([sys.executable, "-m", "sb3_trpo_plus", "record_video", *rest, *own, *trusts]).returncode
        if status != 0:
            sys.exit(status)
        return status

    videos = Path(asked.output_folder or agents / "videos")
    # RL Zoo first deletes its output folder, whatever is in it, and can't do with a relative path or a space in it.
    with TemporaryDirectory() as made:
        ours = ["--exp-id", str(exp_id), "-o", made]
        replacements: list[scripts.Replacement] = [(subprocess, "call", call), (os, "system", ffmpeg_command(ffmpeg))]
        try:
            scripts.run("record_training", [*arguments, *ours], replacements)
        except RuntimeError as error:
            scripts.stop(error)
        shutil.copytree(made, videos, dirs_exist_ok=True)
    print(f"Moved to {videos}")
