"""What videos need besides RL Zoo: an environment that gives pictures, MoviePy, and an ffmpeg that can write text."""

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
from gymnasium.envs.registration import load_env_creator

# ffmpeg's own choice of a font fails where the system has none; this one comes with Matplotlib.
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


def obstacle_to_filming(env_id: str, env_kwargs: dict[str, Any]) -> str | None:
    """
    Render one frame in an environment of its own.

    :param env_id: id of the environment
    :param env_kwargs: its arguments, with the render mode
    :return: why it can't be filmed, None if it can
    """
    if find_spec("moviepy") is None:
        return "videos need MoviePy: pip install 'sb3-trpo-plus[zoo]'"
    entry_point, mode = gym.spec(env_id).entry_point, env_kwargs["render_mode"]
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    modes = getattr(creator, "metadata", {}).get("render_modes")
    if modes is not None and mode not in modes:
        return f"{env_id} can't be filmed: it has no render mode {mode}, only {', '.join(modes) or 'none at all'}"
    try:
        env = gym.make(env_id, **env_kwargs)
        try:
            env.reset()
            frame: Any = env.render()
        finally:
            env.close()
    except Exception as error:  # of whatever draws: a package or a screen may be missing
        reason = f"{type(error).__name__}: {error}"
        if "mujoco" in str(entry_point):
            reason += "; without a screen, MuJoCo draws with MUJOCO_GL=egl or MUJOCO_GL=osmesa in the environment variables"
    else:
        if isinstance(frame, np.ndarray):
            return None
        reason = f"its render() returns {type(frame).__name__} and no picture"
    return f"{env_id} can't be filmed: {reason}"


def find_ffmpeg(needed_filter: str = "") -> str | None:
    """
    The ffmpeg to use.

    :param needed_filter: a filter that it must have
    :return: the one on the PATH, or else the one that imageio-ffmpeg brings; None if neither has the filter
    """
    found = [shutil.which("ffmpeg")]
    with suppress(ImportError, RuntimeError):
        found.append(import_module("imageio_ffmpeg").get_ffmpeg_exe())
    for binary in found:
        if binary is not None:
            filters = subprocess.run([binary, "-hide_banner", "-filters"], capture_output=True, text=True).stdout
            if f" {needed_filter}" in filters:
                return binary
    return None


def ffmpeg_command(binary: str) -> Callable[[str], int]:
    """
    A replacement of ``os.system`` for commands that begin with ffmpeg, which notices when they fail.

    :param binary: the ffmpeg to run
    :return: function of a command
    """

    def system(command: str) -> int:
        command = command.replace("ffmpeg ", f'"{binary}" -hide_banner -loglevel error ', 1)
        command = command.replace('drawtext="', f"drawtext=\"fontfile='{FONT}': ", 1)
        if subprocess.run(command, shell=True).returncode != 0:
            raise RuntimeError(f"ffmpeg failed: {command}")
        return 0

    return system
