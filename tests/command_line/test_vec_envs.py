"""``sb3-trpo-plus train --vec-env``: on worker processes, Gymnasium's vector environments and EnvPool."""

import csv
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import sb3_trpo_plus.zoo  # noqa: F401  (registers)
from sb3_trpo_plus import TRPO
from sb3_trpo_plus.command_line.main import main
from sb3_trpo_plus.envs.vec import GymnasiumVecEnv, WorkerVecEnv
from tests.command_line.commands import OURSELVES, run

ENV = "CartPole-v1"
RUN = Path("logs", "trpo", f"{ENV}_1")
ENTRY = {"policy": "MlpPolicy", "n_timesteps": 4096, "n_envs": 4, "n_steps": 128, "n_critic_updates": 2, "normalize": True}
PENDULUM = {**ENTRY, "env_wrapper": ["rl_zoo3.wrappers.TimeFeatureWrapper"], "frame_stack": 2}
Command = Callable[..., str]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process, in a folder of its own, and return what it printed."""
    (tmp_path / "entries.yml").write_text(yaml.safe_dump({ENV: ENTRY, "Pendulum-v1": PENDULUM}))
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sb3-trpo-plus", *words])
        main()
        return "".join(capfd.readouterr())

    return call


def train(vec_env: str, *more: str, env: str = ENV) -> list[str]:
    common = ["--env", env, "-conf", "entries.yml", "--seed", "5", "--eval-freq", "512", "--eval-episodes", "2"]
    return ["train", *common, "--vec-env", vec_env, *more]


def results_of(folder: Path, env: str) -> dict[str, Any]:
    rows = [list(csv.DictReader(file.read_text().splitlines()[1:])) for file in sorted(folder.glob("*.monitor.csv"))]
    with np.load(folder / "evaluations.npz") as evaluations:
        evaluated = {name: evaluations[name].tolist() for name in ("timesteps", "results")}
    return {"episodes": [[(row["r"], row["l"]) for row in one] for one in rows], **evaluated}


def assert_same_runs(one: Path, other: Path, env: str) -> None:
    mine, theirs = (TRPO.load(folder / f"{env}.zip", device="cpu").policy.state_dict() for folder in (one, other))
    assert all(th.equal(mine[name], theirs[name]) for name in theirs)
    assert results_of(one, env) == results_of(other, env)


def test_workers_are_as_dummy(command: Command) -> None:
    """With wrappers of each environment, frames and normalisation: agent, episodes and evaluations are the same to the bit."""
    for kind in ("workers", "dummy"):
        command(*train(kind, "-n", "2048", "-f", kind, env="Pendulum-v1"))
    workers, dummy = (Path(kind, "trpo", "Pendulum-v1_1") for kind in ("workers", "dummy"))
    assert len(results_of(dummy, "Pendulum-v1")["episodes"]) == 4
    assert_same_runs(workers, dummy, "Pendulum-v1")
    assert "- workers" in (workers / "Pendulum-v1" / "args.yml").read_text()


def test_workers_go_on(command: Command) -> None:
    """``--resume`` with workers: as of a training that did not stop."""
    command(*train("workers", "-n", "1024", "-f", "stopped"))
    printed = command(*train("workers", "-n", "2048", "-f", "stopped", "--resume"))
    assert "Going on with stopped/" in printed
    assert "will reset its environments" not in printed
    command(*train("workers", "-n", "2048", "-f", "whole"))
    assert_same_runs(Path("stopped", "trpo", f"{ENV}_1"), Path("whole", "trpo", f"{ENV}_1"), ENV)


@pytest.mark.parametrize("kind", ["gymnasium", "envpool"])
def test_all_at_once(kind: str, command: Command) -> None:
    """Trains with normalisation; episodes are written, plotted and reported; it goes on with environments that are reset."""
    if kind == "envpool":
        pytest.importorskip("envpool")
    with pytest.warns(UserWarning, match="will reset its environments"):
        command(*train(kind, "--env-kwargs", "max_episode_steps:60", "-n", "3072"))
    episodes = load_results(str(RUN))
    assert [file.name for file in RUN.glob("*.monitor.csv")] == ["0.monitor.csv"]
    assert (episodes["r"] == episodes["l"]).all()
    assert episodes["l"].max() <= 60
    # All steps but those of the episodes that were not at their end.
    assert 3072 - 4 * 60 < episodes["l"].sum() <= 3072
    with np.load(RUN / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [512, 1024, 1536, 2048, 2560, 3072]

    assert "Mean return:" in command("report", "-n", "2")
    assert (RUN / "learning_curve.png").is_file()
    assert ".png" in command("plot_train", "-a", "trpo", "-e", ENV, "-f", "logs", "-w", "5")

    with pytest.warns(UserWarning, match="environments"):
        command(*train(kind, "--env-kwargs", "max_episode_steps:60", "-n", "4096", "--resume"))
    assert sorted(file.name for file in RUN.glob("*.monitor.csv")) == ["0.monitor.csv", "1.monitor.csv"]
    after = load_results(str(RUN))
    assert after["l"][: len(episodes)].tolist() == episodes["l"].tolist()
    assert 4096 - 8 * 60 < after["l"].sum() <= 4096
    assert TRPO.load(RUN / f"{ENV}.zip").num_timesteps == 4096


@pytest.mark.filterwarnings("ignore:A training that is resumed")
def test_without_a_vector_environment_of_its_own(command: Command) -> None:
    """Gymnasium steps one after the other then, and the run says so: the same as in ``DummyVecEnv``, to the bit."""
    for kind in ("gymnasium", "dummy"):
        more = ["-n", "1024", "-f", kind, "-params", "env_wrapper:None", "frame_stack:1"]
        printed = command(*train(kind, *more, env="Pendulum-v1"))
        assert ("--vec-env workers is faster" in printed) == (kind == "gymnasium")
    runs = [Path(kind, "trpo", "Pendulum-v1_1") for kind in ("gymnasium", "dummy")]
    assert_same_runs(*runs, "Pendulum-v1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (train("envpool", env="Pendulum-v1"), ["env_wrapper", "TimeFeatureWrapper", "--vec-env workers"]),
        (train("gymnasium", env="Pendulum-v1"), ["env_wrapper", "TimeFeatureWrapper", "--vec-env workers"]),
        (
            train("envpool", "--env-kwargs", "sutton_barto_reward:True"),
            ["--vec-env envpool", "sutton_barto_reward", "max_epis"],
        ),
    ],
)
def test_what_can_not_be_had_is_said(arguments: list[str], words: list[str], command: Command) -> None:
    """One error, that names the option and what to do."""
    pytest.importorskip("envpool")
    with pytest.raises(SystemExit) as end:
        command(*arguments)
    assert all(word in str(end.value) for word in words), end.value


def test_refused_wrappers_leave_no_run(command: Command, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="env_wrapper"):
        command(*train("envpool", env="Pendulum-v1"))
    assert not (tmp_path / "logs").exists()


def test_without_envpool_the_extra_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(SystemExit, match=r"--vec-env envpool: .*pip install 'sb3-trpo-plus\[envpool\]'"):
        command(*train("envpool"))


@pytest.mark.parametrize(("kind", "trains_in"), [("workers", WorkerVecEnv), ("gymnasium", GymnasiumVecEnv)])
def test_evaluations_are_in_a_dummy(kind: str, trains_in: type[VecEnv], tmp_path: Path) -> None:
    """So that their figures are of the same environments, whatever is trained on."""
    from rl_zoo3.exp_manager import ExperimentManager

    args = Namespace(algo="trpo", env=ENV, seed=0)
    manager = ExperimentManager(args, "trpo", ENV, str(tmp_path), vec_env_type=kind, eval_freq=-1, verbose=0)
    made = [manager.create_envs(2), manager.create_envs(2, eval_env=True), manager.create_envs(2, no_log=True)]
    assert [type(env.unwrapped) for env in made] == [trains_in, DummyVecEnv, trains_in]
    for env in made:
        env.close()


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """As users call it, with workers that are started afresh; other algorithms have them too; the parser knows the names."""
    printed = run(
        *OURSELVES, "train", "--algo", "ppo", "--env", ENV, "--vec-env", "workers", "-n", "256", "--eval-freq", "-1",
        "-params", "n_envs:4", "n_steps:64", cwd=tmp_path,
    )  # fmt: skip
    assert "Using 4 environments" in printed
    assert len(list((tmp_path / "logs" / "ppo" / f"{ENV}_1").glob("*.monitor.csv"))) == 4
    printed = run(*OURSELVES, "train", "--env", ENV, "--vec-env", "threads", cwd=tmp_path, fails=True)
    assert all(name in printed for name in ("dummy", "subproc", "workers", "gymnasium", "envpool"))
