"""RL Zoo's real commands with the algorithms besides TRPO."""

from pathlib import Path

import pytest

from sb3_trpo_plus import zoo
from tests.zoo.test_zoo import OURSELVES, run

ALGORITHMS = [algo for algo in zoo.ALGORITHMS if algo != "trpo"]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_trains_goes_on_and_is_enjoyed(algo: str, tmp_path: Path) -> None:
    arguments = ["--algo", algo, "--env", "CartPole-v1", "-f", "logs", "--seed", "0"]
    shortened = ["-n", "3000", "--eval-freq", "1500", "-params", "normalize:True"]
    printed = run(*OURSELVES, "train", *arguments, *shortened, cwd=tmp_path)
    assert f"{zoo.ALGORITHMS[algo].__name__} of sb3_trpo_plus" in printed
    assert "sb3_contrib" not in printed
    assert f"Loading hyperparameters from: {zoo.hyperparams_file(algo)}" in printed
    saved = f"logs/{algo}/CartPole-v1_1/CartPole-v1.zip"
    printed = run(*OURSELVES, "train", *arguments, "-n", "1000", "--eval-freq", "-1", "-i", saved, cwd=tmp_path)
    assert "Loading pretrained agent" in printed
    assert "Mean reward:" in run(*OURSELVES, "enjoy", *arguments, "--no-render", "-n", "600", cwd=tmp_path)
