"""RL Zoo's ``record_video`` and ``record_training``: whose agent is filmed, how it acts, and what to do where it can't be."""

import shutil
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from imageio.v3 import imread
from rl_zoo3 import create_test_env, get_saved_hyperparams

import tests.command_line.lamp as lamp
from sb3_trpo_plus import NPG
from sb3_trpo_plus.command_line.filming import ffmpeg_command, find_ffmpeg, obstacle_to_filming
from tests.command_line.commands import OURSELVES, run

LAMP = ["--algo", "npg", "--env", "Lamp-v0", "-f", "logs", "--gym-packages", "lamp"]
RUN = Path("logs/npg/Lamp-v0_1")
SIZE = 192


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with a checkpoint, statistics, and an argument of the environment in the hyperparameters alone."""
    folder = tmp_path_factory.mktemp("films")
    shutil.copy(lamp.__file__, folder)
    settings = ["normalize:True", f"env_kwargs:{{'size':{SIZE}}}", "n_envs:2", "n_steps:128", "batch_size:64"]
    amount = ["-n", "1024", "--save-freq", "600", "--eval-freq", "-1", "--seed", "1"]
    run(*OURSELVES, "train", *LAMP, *amount, "-params", *settings, cwd=folder)
    return folder


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No program on the PATH, so neither `python` nor ffmpeg, and no fonts."""
    (tmp_path / "fonts.conf").write_text('<?xml version="1.0"?><fontconfig></fontconfig>')
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("FONTCONFIG_FILE", str(tmp_path / "fonts.conf"))


def frames_of(video: Path) -> Any:
    return imread(video, plugin="FFMPEG")


def acted_as_in_enjoy(folder: Path, steps: int) -> tuple[list[int], list[int]]:
    """Brightness of the lamp over an evaluation, and what the actions would be without the statistics."""
    hyperparams, stats = get_saved_hyperparams(str(folder / RUN / "Lamp-v0"), test_mode=True)
    env = create_test_env("Lamp-v0", 1, stats, seed=0, should_render=False, hyperparams=hyperparams, env_kwargs={})
    model = NPG.load(folder / RUN / "Lamp-v0.zip")
    observation = env.reset()
    shown, otherwise = [128], []
    for _ in range(steps):
        otherwise.append(int(model.predict(env.unnormalize_obs(observation), deterministic=True)[0][0]))  # type: ignore
        action, _ = model.predict(observation, deterministic=True)  # type: ignore[arg-type]
        observation, _, done, _ = env.step(action)
        shown.append(128 if done[0] else 255 * int(action[0]))
    return shown, otherwise


@pytest.mark.usefixtures("bare")
def test_filmed_agent_acts_as_in_enjoy(trained: Path) -> None:
    run(*OURSELVES, "record_video", *LAMP, "-n", "30", cwd=trained)
    video = frames_of(trained / RUN / "videos/final-model-npg-Lamp-v0-step-0-to-step-30.mp4")
    assert video.shape == (31, SIZE, SIZE, 3)
    shown, without_statistics = acted_as_in_enjoy(trained, 30)
    assert {0, 255} < set(shown)
    assert len(set(without_statistics)) == 1
    np.testing.assert_allclose(video.mean(axis=(1, 2, 3)), shown, atol=12)


@pytest.mark.usefixtures("bare")
def test_training_is_filmed_into_a_folder_that_keeps_what_it_has(trained: Path) -> None:
    films = trained / "my films"
    films.mkdir()
    (films / "notes.txt").write_text("mine")
    printed = run(*OURSELVES, "record_training", *LAMP, "-n", "12", "-o", "my films", "-g", cwd=trained)
    assert "Moved to my films" in printed
    assert (films / "notes.txt").read_text() == "mine"
    parts = [frames_of(next(films.glob(f"{kind}-*.mp4"))) for kind in ("checkpoint", "final")]
    training = frames_of(films / "training.mp4")
    assert len(training) == sum(map(len, parts)) == 26
    np.testing.assert_allclose(training[:, SIZE // 2 :], np.concatenate(parts)[:, SIZE // 2 :], atol=20)
    assert np.all(training[:, :60].std(axis=(1, 2, 3)) > 10), "the frames are of one colour but for the text"
    assert np.all(np.concatenate(parts)[:, :60].std(axis=(1, 2, 3)) < 2)
    assert imread(films / "training.gif").shape[1:] == (SIZE, SIZE, 3)


def test_what_is_missing_is_said_in_a_line(trained: Path) -> None:
    without_module = run(*OURSELVES, "record_video", *LAMP[:-2], cwd=trained, fails=True)
    assert "Lamp-v0 is not registered with Gymnasium: --gym-packages MODULE" in without_module
    no_module = run(*OURSELVES, "record_training", *LAMP[:-1], "lmap", cwd=trained, fails=True)
    assert "--gym-packages names lmap, but there is no such module" in no_module
    assert "Traceback" not in without_module + no_module


class WithoutPictures(lamp.Lamp):
    metadata = {"render_modes": ["human", "ansi"]}  # noqa: RUF012


class WithoutScreen(lamp.Lamp):
    def render(self) -> Any:
        raise OSError("no screen today")


class InWords(lamp.Lamp):
    def render(self) -> Any:
        return "on"


@pytest.mark.filterwarnings("ignore:.*RGB-array rendering should return")
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        (lamp.Lamp, None),
        (WithoutPictures, "can't be filmed: it has no render mode rgb_array, only human, ansi"),
        (WithoutScreen, "can't be filmed: OSError: no screen today"),
        (InWords, "can't be filmed: its render() returns str and no picture"),
    ],
)
def test_obstacles_to_filming(environment: Any, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gym.registry, "Filmed-v0", gym.envs.registration.EnvSpec("Filmed-v0", environment))
    found = obstacle_to_filming("Filmed-v0", {"render_mode": "rgb_array"})
    assert found == (reason and f"Filmed-v0 {reason}")


def test_ffmpeg_that_can_write_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weak = tmp_path / "ffmpeg"
    weak.write_text("#!/bin/sh\necho ' ... scale  V->V'\n")
    weak.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_ffmpeg() == str(weak)
    strong = find_ffmpeg("drawtext")
    assert strong not in (None, str(weak))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert find_ffmpeg("drawtext") is None
    with pytest.raises(RuntimeError, match=r"ffmpeg failed: .* -i nothing\.mp4"):
        ffmpeg_command(str(strong))("ffmpeg -i nothing.mp4 out.mp4")
