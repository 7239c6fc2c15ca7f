"""The folders in which RL Zoo keeps its runs."""

import argparse
import sys
from pathlib import Path

from huggingface_sb3 import EnvironmentName

LOGS = "logs"
PRETRAINED = "rl-trained-agents"


def with_defaults(arguments: list[str]) -> list[str]:
    """
    Arguments of a command that shows a trained agent, with our defaults: ``--algo trpo``, ``-f logs``, and the newest run that
    has a model, where RL Zoo takes the newest and fails if it was interrupted.

    :param arguments: of the command line
    :raises SystemExit: there is no such run
    """
    filled = ["--algo", "trpo", "-f", LOGS, *arguments]
    if {"-h", "--help"} & set(arguments):
        return filled
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo")
    parser.add_argument("--env", type=EnvironmentName, default="CartPole-v1")
    parser.add_argument("-f", "--folder")
    parser.add_argument("--exp-id", type=int, default=0)
    parser.add_argument("--load-best", action="store_true")
    parser.add_argument("--load-checkpoint", type=int)
    parser.add_argument("--load-last-checkpoint", action="store_true")
    asked, _ = parser.parse_known_args(filled)
    # RL Zoo downloads what it does not find in that folder.
    if asked.exp_id != 0 or PRETRAINED in asked.folder:
        return filled
    model = f"{asked.env}.zip"
    if asked.load_best:
        model = "best_model.zip"
    elif asked.load_checkpoint is not None or asked.load_last_checkpoint:
        model = f"rl_model_{asked.load_checkpoint or '*'}_steps.zip"
    return [*filled, "--exp-id", str(newest_run(asked.folder, asked.algo, asked.env, model))]


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
    home = Path(folder) / algo
    numbers = [path.name.removeprefix(f"{env_name}_") for path in home.glob(f"{env_name}_*") if path.is_dir()]
    runs = sorted((int(number) for number in numbers if number.isdigit()), reverse=True)
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
