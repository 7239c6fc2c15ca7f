"""What our own code needs of RL Zoo's arguments, our defaults for them, and the folders in which RL Zoo keeps its runs."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_sb3 import EnvironmentName

LOGS = "logs"
PRETRAINED = "rl-trained-agents"


def with_defaults(arguments: list[str]) -> list[str]:
    """Arguments with the algorithm and the log folder that RL Zoo's commands have here: those of the user come after them."""
    return ["--algo", "trpo", "-f", LOGS, *arguments]


def asks_for_help(arguments: list[str]) -> bool:
    """Whether RL Zoo will print its help and stop."""
    return "-h" in arguments or "--help" in arguments


def given(arguments: list[str]) -> argparse.Namespace:
    """
    Those arguments of RL Zoo's commands that our own code needs, too.

    :param arguments: of the command line
    :return: by RL Zoo's names
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo", default="trpo")
    parser.add_argument("--env", default="CartPole-v1", type=EnvironmentName)
    parser.add_argument("-f", "--folder", "--log-folder", default=LOGS)
    parser.add_argument("--exp-id", default=0, type=int)
    parser.add_argument("--load-best", action="store_true")
    parser.add_argument("--load-checkpoint", type=int)
    parser.add_argument("--load-last-checkpoint", action="store_true")
    parser.add_argument("-o", "--output-folder")
    parser.add_argument("-orga", "--organization", default="sb3")
    parser.add_argument("-name", "--repo-name")
    parser.add_argument("-n", "--n-timesteps")  # without it, argparse takes -n for -name
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--no-render", action="store_true")
    parser.add_argument("--gym-packages", nargs="+", default=[])
    return parser.parse_known_args(arguments)[0]


def import_modules(names: Sequence[str]) -> None:
    """
    Import what ``--gym-packages`` names, also from the current folder.

    :param names: of modules that register environments
    :raises SystemExit: there is no such module
    """
    if names:
        look_here_too()
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            sys.exit(f"--gym-packages names {name}, but there is no such module, neither here nor installed")


def look_here_too() -> None:
    """As `python -m rl_zoo3.train` has it: environments of one's own often are in a file of the current folder."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def of_newest_run(arguments: list[str]) -> list[str]:
    """
    Arguments of a command that shows a trained agent, with our defaults, and with the newest run that has a model, where RL
    Zoo takes the newest and fails if it was interrupted.

    :param arguments: of the command line
    :raises SystemExit: there is no such run
    """
    filled = with_defaults(arguments)
    if asks_for_help(arguments):
        return filled
    asked = given(filled)
    # RL Zoo downloads what it does not find in that folder.
    if asked.exp_id != 0 or PRETRAINED in asked.folder:
        return filled
    model = f"{asked.env}.zip"
    if asked.load_best:
        model = "best_model.zip"
    elif asked.load_checkpoint is not None or asked.load_last_checkpoint:
        model = f"rl_model_{asked.load_checkpoint or '*'}_steps.zip"
    return [*filled, "--exp-id", str(newest_run(asked.folder, asked.algo, asked.env, model))]


def runs_of(folder: str, algo: str, env_name: EnvironmentName) -> list[int]:
    """Numbers of the runs in RL Zoo's log folder, from the newest; arguments as for :func:`newest_run`."""
    paths = (Path(folder) / algo).glob(f"{env_name}_*")
    numbers = [path.name.removeprefix(f"{env_name}_") for path in paths if path.is_dir()]
    return sorted((int(number) for number in numbers if number.isdigit()), reverse=True)


def newest_run(folder: str, algo: str, env_name: EnvironmentName, model: str) -> int:
    """
    The number of the newest run that has a model.

    :param folder: RL Zoo's log folder
    :param algo: RL Zoo's name of the algorithm
    :param env_name: of the environment
    :param model: name of the file, or a pattern
    :return: at least 1; -1 if the model is in the algorithm's folder itself, as RL Zoo means it
    :raises SystemExit: there is none
    """
    home, runs = Path(folder) / algo, runs_of(folder, algo, env_name)
    with_model = [run for run in runs if any((home / f"{env_name}_{run}").glob(model))]
    if with_model:
        if with_model[0] != runs[0]:
            print(f"Run {runs[0]} has no {model}: taking run {with_model[0]}", file=sys.stderr)
        return with_model[0]
    if any(home.glob(model)):
        return -1
    sys.exit(
        f"There is no {model} of {algo} on {env_name} in {folder}: "
        f"train first, with `sb3-trpo-plus train --algo {algo} --env {getattr(env_name, 'gym_id', env_name)} -f {folder}`"
    )
