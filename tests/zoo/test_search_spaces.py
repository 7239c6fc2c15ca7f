"""RL Zoo's search for hyperparameters, with the spaces of this package."""

from pathlib import Path

import optuna
import pytest
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

from sb3_trpo_plus import zoo
from tests.zoo.test_zoo import OURSELVES, run


def test_hyperparameter_search(tmp_path: Path) -> None:
    arguments = ["--env", "CartPole-v1", "-n", "2000", "-optimize", "--n-trials", "2", "--n-startup-trials", "2"]
    printed = run(*OURSELVES, "train", *arguments, "--no-optim-plots", "-f", "logs", cwd=tmp_path)
    assert "Number of finished trials:  2" in printed
    report = next((tmp_path / "logs/trpo").glob("report_*.csv")).read_text()
    for argument in ("cg_damping", "cg_residual_tol", "fisher_sub_sampling_factor", "ent_coef", "target_kl"):
        assert f"params_{argument}" in report


def test_sampled_hyperparameters_are_constructor_arguments() -> None:
    for algo, algorithm in zoo.ALGORITHMS.items():
        study = optuna.create_study()
        for _ in range(20):
            trial = study.ask()
            arguments = HYPERPARAMS_SAMPLER[algo](trial, 1, 2, {})
            algorithm("MlpPolicy", "CartPole-v1", **arguments)
            assert HYPERPARAMS_CONVERTER[algo](trial.params) == arguments


@pytest.mark.parametrize("algo", [algo for algo in zoo.ALGORITHMS if algo != "trpo"])
def test_hyperparameters_are_searched(algo: str, tmp_path: Path) -> None:
    arguments = ["--algo", algo, "--env", "CartPole-v1", "-n", "1000", "-optimize", "--n-trials", "1", "--seed", "6"]
    printed = run(*OURSELVES, "train", *arguments, "--no-optim-plots", "-f", "logs", cwd=tmp_path)
    assert "Number of finished trials:  1" in printed
