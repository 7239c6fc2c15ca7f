"""RL Zoo's search for hyperparameters, with the spaces of this package."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

from sb3_trpo_plus import TRPO, zoo
from sb3_trpo_plus.zoo.search_spaces import searching_from
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


def test_entries_lie_within_the_search(tmp_path: Path) -> None:
    """What an entry says of our own arguments can be found by the search."""
    study = optuna.create_study()
    trial = study.ask()
    HYPERPARAMS_SAMPLER["trpo"](trial, 1, 2, {})
    for entry in yaml.safe_load(zoo.hyperparams_file("trpo").read_text()).values():
        for name in ("cg_damping", "fisher_sub_sampling_factor", "cg_residual_tol"):
            searched: Any = trial.distributions[name]
            assert searched.low <= entry.get(name, searched.low) <= searched.high


def test_a_trial_keeps_what_is_not_searched(tmp_path: Path) -> None:
    """log_std_init and the slope of target_kl are those of the entry, in the search and when its best trial is trained."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    stored = ["--storage", storage, "--study-name", "s"]
    arguments = ["--env", "Pusher-v5", "-n", "600", "-params", "n_envs:1", "-f", "logs", "--seed", "3"]
    searching = ["-optimize", "--n-trials", "1", "--no-optim-plots", "--n-startup-trials", "1", "--n-evaluations", "1"]
    printed = run(*OURSELVES, "train", *arguments, *searching, *stored, cwd=tmp_path)
    train_with_it = f"--storage {storage} --study-name s --trial-id 0"
    assert f"sb3-trpo-plus train --algo trpo --env Pusher-v5 {train_with_it}" in printed
    run(*OURSELVES, "train", *arguments, *stored, "--trial-id", "0", "--eval-freq", "-1", cwd=tmp_path)
    model = TRPO.load(tmp_path / "logs/trpo/Pusher-v5_2/Pusher-v5.zip")
    params = optuna.load_study(study_name="s", storage=storage).best_trial.params
    assert model.policy_kwargs["log_std_init"] == -1
    assert model.cg_damping == params["cg_damping"]
    assert callable(model.target_kl)
    assert [model.target_kl(1.0), model.target_kl(0.5)] == pytest.approx([params["target_kl"], params["target_kl"] / 2])


def test_sampling_on_top_of_an_entry() -> None:
    trial = optuna.create_study().ask()
    with searching_from({"policy_kwargs": "dict(log_std_init=-1)", "target_kl": "lin_0.03_0.01", "cg_damping": 1.0}):
        sampled = HYPERPARAMS_SAMPLER["npg"](trial, 1, 2, {})
    assert sampled["policy_kwargs"]["log_std_init"] == -1
    assert {"net_arch", "activation_fn"} < sampled["policy_kwargs"].keys()
    ends = [sampled["target_kl"](1.0), sampled["target_kl"](0.0)]
    assert ends == pytest.approx([trial.params["target_kl"], trial.params["target_kl"] / 3])
    assert sampled["ent_coef"] == trial.params["ent_coef"]
