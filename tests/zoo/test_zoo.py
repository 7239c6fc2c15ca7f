"""RL Zoo's real commands, in real processes, with this package's algorithm, settings, and files."""

import inspect
import pickle
import shutil
import sys
import zipfile
from argparse import Namespace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import rl_zoo3
import sb3_contrib
import yaml
from stable_baselines3 import SAC

from sb3_trpo_plus import TRPO, zoo
from sb3_trpo_plus.command_line import opt_in
from sb3_trpo_plus.files.statistics import load_vec_normalize
from tests.command_line.commands import OURS, OURSELVES, REGISTERED, RL_ZOO, run


def test_train_runs_our_algorithm_with_our_file(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    assert OURS in printed
    assert f"Loading hyperparameters from: {zoo.hyperparams_file('trpo')}" in printed
    model = TRPO.load(folder / "logs/trpo/MountainCarContinuous-v0_1/MountainCarContinuous-v0.zip")
    assert model.num_timesteps >= 4096
    assert model.use_sde


def test_enjoy_shows_the_trained_agent(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    arguments = ["--env", "MountainCarContinuous-v0", "-f", "logs", "--no-render", "-n", "2000"]
    printed = run(*OURSELVES, "enjoy", *arguments, cwd=folder)
    assert "Loading running average" in printed
    assert "Mean reward:" in printed


def test_training_goes_on_from_a_saved_agent(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    agent = "logs/trpo/MountainCarContinuous-v0_1/MountainCarContinuous-v0.zip"
    arguments = ["--env", "MountainCarContinuous-v0", "-i", agent, "-n", "4096", "--eval-freq", "-1", "-f", "more"]
    printed = run(*OURSELVES, "train", *arguments, cwd=folder)
    assert "Loading saved VecNormalize stats" in printed


def test_plots_of_rl_zoo_run(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    run(*OURSELVES, "plot_train", "-a", "trpo", "-e", "MountainCarContinuous", "-f", "logs", cwd=folder)
    arguments = ["-a", "trpo", "-e", "MountainCarContinuous", "-f", "logs", "--no-display", "-o", "results"]
    assert "MountainCarContinuous" in run(*OURSELVES, "all_plots", *arguments, cwd=folder)
    assert (folder / "results.pkl").is_file()


def test_rl_zoo_with_its_own_hook(tmp_path: Path) -> None:
    arguments = ["--algo", "trpo", "--env", "CartPole-v1", "-n", "2048", "--eval-freq", "-1", "-f", "logs", "--device", "cpu"]
    assert OURS in run(*RL_ZOO, "train", *arguments, *REGISTERED, cwd=tmp_path)
    enjoy = ["--algo", "trpo", "--env", "CartPole-v1", "-f", "logs", "--no-render", "-n", "600"]
    assert "Mean reward:" in run(*RL_ZOO, "enjoy", *enjoy, *REGISTERED, cwd=tmp_path)


def test_file_of_the_user_comes_first(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text(
        "CartPole-v1: {policy: MlpPolicy, n_timesteps: 256, n_steps: 128, cg_residual_tol: 0.1, target_kl: lin_0.04, "
        "ent_coef: lin_0.02, gamma: lin_0.9_0.8, learning_rate: lin_0.002, normalize: true}"
    )
    arguments = ["--env", "CartPole-v1", "-conf", "mine.yml", "--eval-freq", "-1", "-f", "logs"]
    printed = run(*OURSELVES, "train", *arguments, cwd=tmp_path)
    assert "Loading hyperparameters from: mine.yml" in printed
    model = TRPO.load(tmp_path / "logs/trpo/CartPole-v1_1/CartPole-v1.zip")
    assert model.cg_residual_tol == 0.1
    schedules = (model.target_kl, model.ent_coef, model.gamma, model.lr_schedule)
    assert [schedule(0.25) for schedule in schedules] == pytest.approx([0.01, 0.005, 0.825, 0.0005])  # type: ignore[operator]
    with (tmp_path / "logs/trpo/CartPole-v1_1/CartPole-v1/vecnormalize.pkl").open("rb") as file:
        assert pickle.load(file).gamma == 0.9


@pytest.mark.parametrize(("name", "value"), [("target_kl", "exp_0.04"), ("ent_coef", "lin_"), ("gamma", "lin_0.9_0.8_0.7")])
def test_schedule_that_is_none(tmp_path: Path, name: str, value: str) -> None:
    (tmp_path / "mine.yml").write_text(f"CartPole-v1: {{policy: MlpPolicy, n_timesteps: 256, {name}: '{value}'}}")
    arguments = ["--env", "CartPole-v1", "-conf", "mine.yml", "--eval-freq", "-1", "-f", "logs"]
    printed = run(*OURSELVES, "train", *arguments, cwd=tmp_path, fails=True)
    assert f"{name} must be a number, lin_START or lin_START_END, but it is '{value}'" in printed


@pytest.mark.parametrize(("env_id", "normalized"), [("Pusher-v5", True), ("FrozenLake-v1", False)])
def test_entry_for_any_environment(tmp_path: Path, env_id: str, normalized: bool) -> None:
    run(*OURSELVES, "train", "--env", env_id, "-n", "2048", "--eval-freq", "1024", "-f", "logs", cwd=tmp_path)
    folder = tmp_path / f"logs/trpo/{env_id}_1"
    statistics = pickle.loads((folder / env_id / "vecnormalize.pkl").read_bytes())
    assert (statistics.norm_obs, statistics.norm_reward) == (normalized, True)
    assert len(np.load(folder / "evaluations.npz")["timesteps"]) == 2
    model = TRPO.load(folder / f"{env_id}.zip")
    assert (model.n_envs, model.policy_kwargs["log_std_init"]) == (8, -1)
    if env_id == "Pusher-v5":
        assert set(model.action_space.low) == {-1}  # type: ignore[attr-defined]
    arguments = ["--env", env_id, "-f", "logs", "--no-render", "-n", "300"]
    assert "Mean reward:" in run(*OURSELVES, "enjoy", *arguments, cwd=tmp_path)


def test_other_algorithms_are_left_alone(tmp_path: Path) -> None:
    arguments = ["--algo", "a2c", "--env", "CartPole-v1", "-n", "64", "--eval-freq", "-1", "-f", "logs"]
    printed = run(*OURSELVES, "train", *arguments, cwd=tmp_path)
    assert "sb3_trpo_plus" not in printed.replace(str(Path(__file__).parents[2]), "")
    assert "rl_zoo3/hyperparams/a2c.yml" in printed


def test_strings_of_other_algorithms_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text("Pendulum-v1: {policy: MlpPolicy, n_timesteps: 64, ent_coef: auto_0.1}")
    arguments = ["--algo", "sac", "--env", "Pendulum-v1", "-conf", "mine.yml", "--eval-freq", "-1", "-f", "logs"]
    run(*OURSELVES, "train", *arguments, cwd=tmp_path)
    assert SAC.load(tmp_path / "logs/sac/Pendulum-v1_1/Pendulum-v1.zip").ent_coef == "auto_0.1"


@pytest.mark.parametrize("first", ["rl_zoo3.exp_manager", "rl_zoo3.train"])
def test_opt_in_registers_whatever_of_rl_zoo_is_imported_first(first: str, tmp_path: Path) -> None:
    (tmp_path / "custom_envs.py").write_text(opt_in.CONTENT)
    code = f"import {first}; from rl_zoo3 import ALGOS; print(ALGOS['trpo'].__module__)"
    assert "sb3_trpo_plus.algorithms.trpo" in run(sys.executable, "-c", code, cwd=tmp_path)


def test_published_agent_is_enjoyed(zoo_agents: Path, tmp_path: Path) -> None:
    for name in ("CartPole-v1", "Acrobot-v1"):
        target = tmp_path / "agents" / "trpo" / f"{name}_1"
        shutil.copytree(zoo_agents / name, target / name, ignore=shutil.ignore_patterns("*.zip"))
        shutil.copy(zoo_agents / name / f"{name}.zip", target)
    arguments = ["-f", "agents", "--no-render", "-n", "1100"]
    printed = run(*OURSELVES, "enjoy", "--env", "CartPole-v1", *arguments, cwd=tmp_path)
    assert "Mean reward: 500.00 +/- 0.00" in printed
    printed = run(*OURSELVES, "enjoy", "--env", "Acrobot-v1", *arguments, cwd=tmp_path)
    assert "Loading running average" in printed
    assert "Mean reward: -" in printed


THEIR_FILE = files("rl_zoo3") / "hyperparams" / "trpo.yml"


def test_our_file_has_every_entry_of_rl_zoos_and_the_current_ids() -> None:
    ours, theirs = yaml.safe_load(zoo.hyperparams_file("trpo").read_text()), yaml.safe_load(THEIR_FILE.read_text())
    assert theirs.keys() - ours.keys() == set()
    assert "default" in ours
    for env in [env for env in theirs if env.endswith("-v4")]:
        assert ours[env.replace("-v4", "-v5")] == ours[env]


@pytest.mark.parametrize("algo", zoo.ALGORITHMS)
def test_every_entry_makes_a_model(algo: str, tmp_path: Path) -> None:
    """Arguments, wrappers and environments exist, where the environment's package is installed."""
    import gymnasium as gym
    from rl_zoo3.exp_manager import ExperimentManager

    entries = yaml.safe_load(zoo.hyperparams_file(algo).read_text())
    made_here = [env_id for env_id in entries if env_id in gym.registry]
    for env_id in made_here:
        policy_kwargs = entries[env_id].get("policy_kwargs")
        assert policy_kwargs is None or policy_kwargs.startswith("dict(")
        args = Namespace(algo=algo, env=env_id, seed=0)
        made = ExperimentManager(args, algo, env_id, str(tmp_path), eval_freq=-1, verbose=0, device="cpu").setup_experiment()
        assert made is not None
        assert type(made[0]) is zoo.ALGORITHMS[algo]
    assert len(made_here) > (25 if algo == "trpo" else 10)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "HalfCheetah-v4"])
def test_file_for_many_environments_is_found_by_its_name(
    env_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rl_zoo3.exp_manager import ExperimentManager

    args = Namespace(algo="trpo", env=env_id, seed=0)
    options = {"config": "trpo_many.yml", "vec_env_type": "dummy", "device": "cpu"}
    made = ExperimentManager(args, "trpo", env_id, str(tmp_path), eval_freq=-1, verbose=0, **options).setup_experiment()
    assert f"hyperparameters from: {zoo.hyperparams_file('trpo_many')}" in capsys.readouterr().out
    assert made is not None
    assert made[0].n_envs >= 32


def test_wheel_carries_the_hyperparameters(tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", tmp_path, Path(__file__).parents[2], cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"sb3_trpo_plus/hyperparams/{name}.yml" for name in (*zoo.ALGORITHMS, "trpo_many")} <= set(names)
    assert "sb3_trpo_plus/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]


def test_zoo_commands_read_statistics_through_our_loader() -> None:
    from stable_baselines3.common.vec_env import VecNormalize

    assert VecNormalize.load is load_vec_normalize
    # Theirs in their order; ours has a default, so that RL Zoo's calls of two arguments are those of data.
    assert list(inspect.signature(VecNormalize.load).parameters)[:2] == ["load_path", "venv"]
    assert inspect.signature(VecNormalize.load).parameters["trust"].default is False
    zoo.register()
    assert sb3_contrib.TRPO is not TRPO
    assert np.all([algorithm is rl_zoo3.ALGOS[name] for name, algorithm in zoo.ALGORITHMS.items()])
