"""``sb3-trpo-plus train --resume``: with the run's own settings, whatever is said beside it; and trainings that end early."""

import csv
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.command_line.main import main
from sb3_trpo_plus.wrappers import unit_actions
from tests.command_line.commands import OURSELVES

Command = Callable[..., str]
# An environment in which a signal comes at the moment that RING names, as one of a terminal does at any.
BELL = """
import os, signal
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv
from torch import nn

def ring(moment):
    if os.environ.get("RING") == moment:
        del os.environ["RING"]
        os.kill(os.getpid(), getattr(signal, os.environ.get("SIGNAL", "SIGINT")))

class Dropped:
    def __del__(self):
        ring("destructor")

class Activation(nn.Tanh):
    pass

class Bell(CartPoleEnv):
    def __init__(self, **kwargs):
        ring("making")
        try:
            ring("library")
        except KeyboardInterrupt as interrupt:
            raise gym.error.DependencyNotInstalled("Something is not installed") from interrupt
        super().__init__(**kwargs)

    def reset(self, **kwargs):
        ring("reset")
        return super().reset(**kwargs)

    def step(self, action):
        ring("step")
        return super().step(action)

class Wrapper(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward

gym.register("Bell-v0", Bell, max_episode_steps=100)
Dropped()
ring("import")
"""
BELL_ARGUMENTS = ["--env", "Bell-v0", "--gym-packages", "bell", "-n", "1024", "--eval-freq", "-1"]
SHORT = ["n_envs:2", "n_steps:64", "n_critic_updates:1"]
# A schedule would be of another length where -n is.
CONSTANT = ["target_kl:0.01", "ent_coef:0.0"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process, in a folder of its own with the module ``bell``, and return what it printed."""
    (tmp_path / "bell.py").write_text(BELL)
    monkeypatch.chdir(tmp_path)

    def call(*words: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["sb3-trpo-plus", *words])
        monkeypatch.setattr(sys, "path", [*sys.path])
        sys.modules.pop("bell", None)
        ended = 0
        try:
            main()
        except SystemExit as end:
            ended = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                print(end.code)
        printed = "".join(capfd.readouterr())
        assert ended == status, printed
        return printed

    return call


def results_of(run: Path) -> dict[str, Any]:
    """What a run is compared by: the parameters, the statistics, each environment's episodes and the evaluations."""
    (model_file,) = run.glob("*-v*.zip")
    model = TRPO.load(model_file, device="cpu")
    files = sorted(run.glob("*.monitor.csv"))
    rows = [list(csv.DictReader(file.read_text().splitlines()[1:])) for file in files]
    evaluations: dict[str, Any] = {}
    if (run / "evaluations.npz").is_file():
        with np.load(run / "evaluations.npz") as saved:
            evaluations = {name: saved[name].tolist() for name in ("timesteps", "results")}
    return {
        "parameters": {name: value.tolist() for name, value in model.policy.state_dict().items()},
        "steps": model.num_timesteps,
        "episodes": [[row["r"] for row in one] for one in rows],
        "evaluations": evaluations,
    }


def way_on(printed: str) -> list[str]:
    """The words of the command that a training ended with, after the program's name."""
    (found,) = re.findall(r"Go on: sb3-trpo-plus (.*)", printed)
    return shlex.split(found)


def test_settings_are_the_runs(command: Command) -> None:
    """Environments, wrappers, normalisation, seed and evaluations, without a word of them."""
    wrapped = ["env_wrapper:'sb3_trpo_plus.wrappers.unit_actions'", "normalize:dict(norm_obs=True, norm_reward=False)"]
    settings = ["--env", "Pendulum-v1", "--env-kwargs", "g:5.0", "--eval-freq", "500", "--eval-episodes", "2"]
    settings += ["--n-eval-envs", "2", "--vec-env", "workers", "-params", *SHORT, "n_envs:3", *CONSTANT, *wrapped]
    printed = command("train", *settings, "-n", "960", "-f", "stopped")
    (seed,) = re.findall(r"Seed: (\d+)", printed)
    printed = command("train", "--env", "Pendulum-v1", "-f", "stopped", "-n", "1920", "--resume")
    assert re.findall(r"Seed: (\d+)", printed) == [seed]
    assert "'n_envs', 3" in printed
    assert "env_kwargs={'g': 5.0}" in printed
    assert "Going on with stopped/trpo/Pendulum-v1_1, after 960 steps of 1920" in printed

    command("train", *settings, "-n", "1920", "-f", "whole", "--seed", seed)
    stopped, whole = (results_of(Path(folder, "trpo", "Pendulum-v1_1")) for folder in ("stopped", "whole"))
    assert whole["evaluations"]["timesteps"] == [498, 996, 1494]
    assert stopped == whole

    # Words that repeat the run's settings are no others; and a folder that was moved is the same run.
    Path("stopped").rename("moved")
    printed = command("train", *settings, "--seed", seed, "--resume", "moved/trpo/Pendulum-v1_1")
    assert "moved/trpo/Pendulum-v1_1 is finished: 1920 steps are done, of 1920" in printed


def test_stopped_and_whole(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Stopped by a Ctrl-C in its first reset, with a unique name, and with a wrapper and an activation of the user's own, which a
    file can't name where it is read as data: the printed command goes on, as if nothing had been.
    """
    own = ["env_wrapper:'bell.Wrapper'", "policy_kwargs:dict(activation_fn=__import__('bell').Activation)"]
    settings = ["train", *BELL_ARGUMENTS, "--seed", "4", "--uuid", "-params", *SHORT, *own]
    monkeypatch.setenv("RING", "reset")
    printed = command(*settings, "-f", "stopped", status=128 + signal.SIGINT)
    assert "Stopping after this update" in printed
    assert "Stopped after 128 steps. Go on: sb3-trpo-plus train --resume stopped/trpo/Bell-v0_1_" in printed
    assert way_on(printed)[-1] == "--trust"
    refused = command(*way_on(printed)[:-1], status=1)
    assert "is refused: it has an object, not data" in refused
    assert "Traceback" not in refused

    command(*way_on(printed))
    command(*settings, "-f", "whole")
    (stopped,), (whole,) = (list(Path(name, "trpo").glob("Bell-v0_1_*")) for name in ("stopped", "whole"))
    mine, theirs = (TRPO.load(run / "Bell-v0.zip", device="cpu", trust=True).policy.state_dict() for run in (stopped, whole))
    assert all(th.equal(mine[name], theirs[name]) for name in theirs)


@pytest.fixture
def finished(command: Command) -> Path:
    command("train", *BELL_ARGUMENTS, "--seed", "1", "-params", *SHORT)
    return Path("logs", "trpo", "Bell-v0_1")


def test_others_are_refused(finished: Path, command: Command) -> None:
    before = results_of(finished)
    others = ["--seed", "7", "--eval-freq", "300", "--vec-env", "subproc", "-params", "n_steps:64", "n_envs:3"]
    printed = command("train", "--env", "Bell-v0", *others, "-n", "2048", "--resume", status=1)
    for words in ("--seed 7 (the run has 1)", "--eval-freq 300 (the run has -1)", "--vec-env subproc (the run has dummy)"):
        assert words in printed
    assert "-params n_envs:3 (the run has 2)" in printed
    assert "n_steps" not in printed
    assert "Seed:" not in printed
    assert "Traceback" not in printed
    assert results_of(finished) == before


def test_finished_run(finished: Path, command: Command) -> None:
    words = "logs/trpo/Bell-v0_1 is finished: 1024 steps are done, of "
    assert f"{words}1024" in command("train", "--env", "Bell-v0", "--resume")
    assert f"{words}512" in command("train", "-n", "512", "--resume", str(finished))
    # As after a kill between the last checkpoint and the model.
    expected = results_of(finished)
    (finished / "Bell-v0.zip").unlink()
    assert "Saving to logs/trpo/Bell-v0_1" in command("train", "--resume", str(finished))
    assert results_of(finished) == expected
    # What was given once holds for the next time.
    command("train", "-n", "2048", "--resume", str(finished))
    assert "2048 steps are done, of 2048" in command("train", "--resume", str(finished))


def test_what_can_not_go_on_is_said(finished: Path, command: Command) -> None:
    for arguments, words in (
        (["--algo", "ppo", "--resume"], "checkpoints, which the algorithms of this package alone write"),
        (["--resume", "nowhere"], "nowhere is no folder of a run"),
        (["--env", "Acrobot-v1", "--resume"], "There is no run of trpo on Acrobot-v1 in logs: train first"),
        (["--algo", "npg", "--resume", str(finished)], "--algo npg (the run has trpo)"),
    ):
        printed = command("train", *arguments, status=1)
        assert words in printed
        assert "Traceback" not in printed
    (checkpoint,) = finished.glob("checkpoints/checkpoint_1024_steps.zip")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    printed = command("train", "--resume", str(finished), "-n", "2048", status=1)
    assert "checkpoint_1024_steps.zip is no whole checkpoint" in printed
    assert "Traceback" not in printed


def test_run_without_a_checkpoint(command: Command, tmp_path: Path) -> None:
    """A real SIGKILL within the first rollout: the run is there, and has nothing to go on with, which is what is said."""
    environment = {**os.environ, "RING": "step", "SIGNAL": "SIGKILL"}
    killed = subprocess.run([*OURSELVES, "train", *BELL_ARGUMENTS], cwd=tmp_path, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    for words in (["--env", "Bell-v0", "--resume"], ["--resume", "logs/trpo/Bell-v0_1"]):
        printed = command("train", *words, status=1)
        assert "logs/trpo/Bell-v0_1 has no checkpoint to go on with: it was ended before its first update was done" in printed
    command("train", *BELL_ARGUMENTS, "-params", *SHORT)
    assert "logs/trpo/Bell-v0_2 is finished" in command("train", "--env", "Bell-v0", "--resume")


@pytest.mark.parametrize("moment", ["import", "making", "library", "destructor"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupt_before_the_first_step(moment: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that Python drops, since it comes in a destructor, and one that a library takes for something else."""
    monkeypatch.setenv("RING", moment)
    printed = command("train", *BELL_ARGUMENTS, "-params", *SHORT, status=128 + signal.SIGINT)
    assert printed.splitlines()[-1] == "Stopped"
    assert not list(Path("logs").glob("trpo/*/*.zip"))
    assert "iterations" not in printed


def test_interrupt_of_a_terminal(tmp_path: Path) -> None:
    """A real one, which all processes get: the workers leave it to the main process, and the update is finished."""
    words = ["train", "--env", "CartPole-v1", "--vec-env", "subproc", "--eval-freq", "-1", "-n", "1000000", "-params", *SHORT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([*OURSELVES, *words], cwd=tmp_path, env=environment, start_new_session=True, **pipes) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "iterations" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
    printed = "".join(lines) + rest
    assert process.returncode == 128 + signal.SIGINT, printed
    assert way_on(printed) == ["train", "--resume", "logs/trpo/CartPole-v1_1"]
    assert "Traceback" not in printed


def test_run_goes_on_in_python(command: Command) -> None:
    """In environments that are made as RL Zoo made them."""
    wrapped = ["env_wrapper:'sb3_trpo_plus.wrappers.unit_actions'", "normalize:True", *SHORT]
    common = [
        "--env",
        "Pendulum-v1",
        "--seed",
        "2",
        "--eval-freq",
        "-1",
        "-params",
        *wrapped,
        "target_kl:0.01",
        "ent_coef:0.0",
    ]
    command("train", *common, "-n", "512", "-f", "stopped")
    command("train", *common, "-n", "1024", "-f", "whole")
    with Path("stopped/trpo/Pendulum-v1_1/Pendulum-v1/config.yml").open() as file:
        config = dict(yaml.load(file, Loader=yaml.UnsafeLoader))
    env = make_vec_env("Pendulum-v1", config["n_envs"], wrapper_class=unit_actions)
    model = TRPO.resume("stopped/trpo/Pendulum-v1_1", VecNormalize(env, gamma=config["gamma"]), device="cpu").learn(1024)
    whole = TRPO.load("whole/trpo/Pendulum-v1_1/Pendulum-v1.zip", device="cpu").policy.state_dict()
    assert all(th.equal(value, whole[name]) for name, value in model.policy.state_dict().items())
    with pytest.raises(ValueError, match=r"Action spaces do not match.* the first <RescaleAction<.* the first <Monitor<"):
        TRPO.resume("stopped/trpo/Pendulum-v1_1", VecNormalize(make_vec_env("Pendulum-v1", 2)))


def test_faults_of_arguments_are_said_in_a_line(finished: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, expected in (
        (["train", "-params", "targt_kl:0.1"], "got an unexpected keyword argument 'targt_kl'. Did you mean 'target_kl'?"),
        (["train", "-params", "target_kl:'0.1'"], "target_kl must be a number, lin_START or lin_START_END, but it is '0.1'"),
    ):
        printed = command(*words, status=1)
        assert expected in printed
        assert "Traceback" not in printed
    assert not Path("logs", "trpo", "CartPole-v1_1").exists()
    import gymnasium as gym

    monkeypatch.delitem(gym.registry, "Bell-v0")
    printed = command("report", "--env", "Bell-v0", status=1)
    assert "registered by `--gym-packages MODULE`" in printed
    assert "Traceback" not in printed
