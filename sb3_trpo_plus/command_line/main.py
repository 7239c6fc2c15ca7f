"""The command line: RL Zoo's commands with this package's algorithms registered, and a few of our own."""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from sb3_trpo_plus import __version__
from sb3_trpo_plus.command_line.interrupts import ended_in_a_line
from sb3_trpo_plus.command_line.missing import explained

USAGE = f"""sb3-trpo-plus {__version__}: trust-region policy optimisation for Stable-Baselines3

usage: sb3-trpo-plus COMMAND [ARGUMENTS]

RL Zoo's commands, with this package's algorithms (COMMAND --help lists their arguments). --algo is trpo, which is the default,
npg, trpo_vine, ppo_penalty, or any of RL Zoo's; the log folder is -f logs:
  train            train an agent, go on with the last training with --resume, or search for hyperparameters with -optimize
  enjoy            watch a trained agent
  record_video     film a trained agent
  record_training  film the agents of a training, one after the other
  plot_train, plot_from_file, all_plots
                   plot training curves and evaluations; without a screen, into files
  push_to_hub, load_from_hub
                   share a trained agent on the Hugging Face Hub, or download one

What they open (models, statistics, settings) is read as data, and what would run code is refused: so are saved models of
algorithms that are not this package's, since SB3 unpickles those, and replay buffers. --trust opens it all, and lets it run.
train --resume unpickles the states of environments: resume only trainings of your own.

This package's own:
  report           evaluate a trained agent and draw its learning curve
  inspect          say what a model file holds, and whether it is safe, without loading it
  enable           make the plain `rl_zoo3` command of this Python environment use this package
  disable          take that back
  status           say whose TRPO `rl_zoo3` runs
  --version
"""

# Where each command is. Imported when it is called, since most need RL Zoo, which is an extra.
COMMANDS = {
    **dict.fromkeys(("train", "enjoy", "plot_train", "plot_from_file", "all_plots"), "rl_zoo"),
    **dict.fromkeys(("record_video", "record_training"), "videos"),
    **dict.fromkeys(("push_to_hub", "load_from_hub"), "hub"),
    "report": "report",
}
OPT_IN = {
    "enable": "Make the plain `rl_zoo3` command of this Python environment use this package: writes a module `custom_envs` of "
    "one line, which RL Zoo imports, into site-packages.",
    "disable": "Take `sb3-trpo-plus enable` back: removes the module it wrote, and `rl_zoo3` runs sb3_contrib's TRPO.",
    "status": "Say whose TRPO the plain `rl_zoo3` command of this Python environment runs. Changes nothing.",
}


def main() -> None:
    """Run the command that ``sys.argv`` names."""
    command, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if command in ("-h", "--help"):
        print(USAGE)
    elif command == "--version":
        print(f"sb3-trpo-plus {__version__}")
    elif command == "inspect":
        _module("inspect").inspect(arguments)
    elif command in COMMANDS:
        with ended_in_a_line(), explained():
            opened_as_data: Callable[..., Any] = _module("opening").opened_as_data
            run: Callable[[list[str]], None] = getattr(_module(COMMANDS[command]), command)
            with opened_as_data(command, arguments) as rest:
                run(rest)
    elif command in OPT_IN:
        _opt_in(command, arguments)
    else:
        sys.exit(f"sb3-trpo-plus: there is no command {command!r}\n\n{USAGE}")


def _module(name: str) -> Any:
    return import_module(f"sb3_trpo_plus.command_line.{name}")


def _opt_in(command: str, arguments: list[str]) -> None:
    from sb3_trpo_plus.command_line import opt_in

    argparse.ArgumentParser(f"sb3-trpo-plus {command}", description=OPT_IN[command]).parse_args(arguments)
    act: Callable[[], str] = getattr(opt_in, command)
    try:
        print(act())
    except opt_in.ActivationError as error:
        sys.exit(str(error))
