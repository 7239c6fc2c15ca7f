"""
RL Zoo's scripts that do their work under ``if __name__ == "__main__"``, run in this process with our algorithms.

A script run this way imports what it uses, so what is wrong for us is replaced where it imports from, while it runs.
"""

import argparse
import runpy
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NoReturn
from unittest.mock import patch

import gymnasium as gym
from huggingface_sb3 import EnvironmentName
from rl_zoo3 import utils

import sb3_trpo_plus.zoo  # noqa: F401  (registers)
from sb3_trpo_plus.command_line.filming import obstacle_to_filming
from sb3_trpo_plus.command_line.runs import asks_for_help, import_modules

Replacement = tuple[Any, str, Any]


def run(script: str, arguments: list[str], replacements: Sequence[Replacement] = ()) -> None:
    """
    Run a script of RL Zoo.

    :param script: its name in ``rl_zoo3``
    :param arguments: of its command line
    :param replacements: attributes that have another value while it runs: owner, name, value
    """
    with ExitStack() as stack:
        for owner, name, value in replacements:
            stack.enter_context(patch.object(owner, name, value, create=True))
        stack.enter_context(patch.object(sys, "argv", [f"sb3-trpo-plus {script}", *arguments]))
        runpy.run_module(f"rl_zoo3.{script}", run_name="__main__")


def import_gym_packages(arguments: list[str]) -> tuple[list[str], list[str]]:
    """
    Import the modules that ``--gym-packages`` names, an argument that these scripts lack, also from the current folder.

    :param arguments: of the command line
    :return: the arguments without it, and the names
    :raises SystemExit: there is no such module
    """
    if asks_for_help(arguments):
        print("Besides RL Zoo's arguments: --gym-packages MODULE [MODULE ...], modules to import that register environments\n")
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--gym-packages", nargs="+", default=[])
    found, rest = parser.parse_known_args(arguments)
    import_modules(found.gym_packages)
    return rest, found.gym_packages


def saved_agent() -> list[Replacement]:
    """
    Replacements with which a script finds an agent and makes its environment as ``enjoy`` does, or says why it can't.

    :return: for :func:`run`
    """
    get_model_path, create_test_env = utils.get_model_path, utils.create_test_env

    def find(exp_id: int, folder: str, algo: str, env_name: EnvironmentName, *args: Any) -> Any:
        if env_name.gym_id not in gym.registry:
            stop(
                f"{env_name.gym_id} is not registered with Gymnasium: --gym-packages MODULE imports the module that does that"
            )
        try:
            return get_model_path(exp_id, folder, algo, env_name, *args)
        except (AssertionError, ValueError) as error:
            return stop(f"{error}: train first, with `sb3-trpo-plus train --algo {algo} --env {env_name.gym_id} -f {folder}`")

    def make(env_id: str, **kwargs: Any) -> Any:
        # The scripts leave out those of a hyperparameter file, which `enjoy` takes.
        kwargs["env_kwargs"] = {**kwargs["hyperparams"].pop("env_kwargs", {}), **kwargs["env_kwargs"]}
        obstacle = obstacle_to_filming(env_id, kwargs["env_kwargs"]) if "render_mode" in kwargs["env_kwargs"] else None
        if obstacle is not None:
            stop(obstacle)
        return create_test_env(env_id, **kwargs)

    return [(utils, "get_model_path", find), (utils, "create_test_env", make)]


def stop(reason: object) -> NoReturn:
    """
    End the command in one line.

    :param reason: why
    :raises SystemExit: with exit code 1
    """
    sys.exit(" ".join(str(reason).split()))
