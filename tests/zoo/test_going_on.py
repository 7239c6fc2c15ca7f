"""``sb3-trpo-plus train`` stops when it is asked to, and goes on with ``--resume``."""

import csv
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import yaml

from sb3_trpo_plus import TRPO
from tests.command_line.commands import OURSELVES, run

# Normalised, so that the statistics matter too; Pendulum's episodes all end by truncation.
ENTRY = {"policy": "MlpPolicy", "n_timesteps": 8192, "n_envs": 2, "n_steps": 64, "n_critic_updates": 2, "normalize": True}
ARGUMENTS = ("--env", "Pendulum-v1", "-conf", "pendulum.yml", "--seed", "3", "--eval-freq", "2048", "--eval-episodes", "1")
RUN = "trpo/Pendulum-v1_1"


def train(folder: str, *more: str) -> list[str]:
    return [*OURSELVES, "train", *ARGUMENTS, "--log-folder", folder, *more]


def stopped(folder: str, cwd: Path, *signals: signal.Signals) -> tuple[int, str]:
    """The exit status and the output of a training that gets signals once it has made some updates."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command: Any = {"cwd": cwd, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(train(folder), **command) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "iterations" in line and line.split("|")[2].strip() == "5":
                break
        for number in signals:
            process.send_signal(number)
        rest, _ = process.communicate(timeout=120)
    return process.returncode, "".join(lines) + rest


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "pendulum.yml").write_text(yaml.safe_dump({"Pendulum-v1": ENTRY}))
    return tmp_path


def results_of(folder: Path) -> dict[str, Any]:
    rows = [list(csv.DictReader(file.read_text().splitlines()[1:])) for file in sorted(folder.glob("*.monitor.csv"))]
    with np.load(folder / "evaluations.npz") as evaluations:
        evaluated = {name: evaluations[name].tolist() for name in ("timesteps", "results")}
    return {"episodes": [[row["r"] for row in one] for one in rows], **evaluated}


def test_signal_and_resume(home: Path) -> None:
    """SIGTERM, then the printed command: the same agent, episodes and evaluations as of a training that nothing stopped."""
    status, printed = stopped("stopped", home, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    assert "Stopping after this update. Once more stops at once." in printed
    assert printed.splitlines()[-1].startswith("Stopped after ")
    assert printed.splitlines()[-1].endswith(f"Go on: sb3-trpo-plus train --resume stopped/{RUN}")
    before = {name: (home / "stopped" / RUN / "Pendulum-v1" / name).read_bytes() for name in ("args.yml", "command.txt")}

    printed = run(*OURSELVES, *printed.split("sb3-trpo-plus ")[-1].split(), cwd=home)
    assert f"Going on with stopped/{RUN}, after " in printed
    run(*train("whole"), cwd=home)
    models = [TRPO.load(home / folder / RUN / "Pendulum-v1.zip") for folder in ("stopped", "whole")]
    parameters = [model.policy.state_dict() for model in models]
    assert all(th.equal(parameters[0][name], parameters[1][name]) for name in parameters[0])
    assert [model.num_timesteps for model in models] == [8192, 8192]
    assert results_of(home / "stopped" / RUN) == results_of(home / "whole" / RUN)
    assert all((home / "stopped" / RUN / "Pendulum-v1" / name).read_bytes() == text for name, text in before.items())
    assert not (home / "stopped" / "trpo" / "Pendulum-v1_2").exists()


def test_second_signal_stops_at_once(home: Path) -> None:
    status, printed = stopped("stopped", home, signal.SIGTERM, signal.SIGTERM)
    assert status in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert ("Stopped after" in printed) == (status > 0)


def test_nothing_to_resume(home: Path) -> None:
    assert "There is no run of trpo on Pendulum-v1 in nowhere: train first" in run(
        *train("nowhere", "--resume"), cwd=home, fails=True
    )
