"""The command line: RL Zoo's commands with this package's algorithms registered, and a few of our own."""

import sys

from sb3_trpo_plus import __version__
from sb3_trpo_plus.command_line import opt_in

USAGE = f"""sb3-trpo-plus {__version__}: trust-region policy optimisation for Stable-Baselines3

usage: sb3-trpo-plus COMMAND [ARGUMENTS]

RL Zoo's commands, with this package's algorithms (COMMAND --help lists their arguments):
  train            train an agent, or search for hyperparameters with -optimize; --algo is trpo (the default), npg,
                   trpo_vine, ppo_penalty, or any of RL Zoo's
  enjoy            watch a trained agent; --algo trpo is the default
  plot_train, plot_from_file, all_plots
                   plot training curves and evaluations

This package's own:
  report           evaluate a trained agent and draw its learning curve
  enable           make the plain `rl_zoo3` command of this Python environment use this package
  disable          take that back
  status           say whose TRPO `rl_zoo3` runs
"""
ZOO_COMMANDS = ("train", "enjoy", "plot_train", "plot_from_file", "all_plots")


def main() -> None:
    """Run the command that ``sys.argv`` names."""
    command, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if command in ("-h", "--help"):
        print(USAGE)
    elif command in ZOO_COMMANDS:
        _run_zoo(command, arguments)
    elif command == "report":
        from sb3_trpo_plus.command_line.report import main as report

        report(arguments)
    elif command in ("enable", "disable", "status"):
        try:
            print(getattr(opt_in, command)())
        except opt_in.ActivationError as error:
            sys.exit(str(error))
    else:
        sys.exit(f"sb3-trpo-plus: there is no command {command!r}\n\n{USAGE}")


def _run_zoo(command: str, arguments: list[str]) -> None:
    from rl_zoo3.cli import main as rl_zoo3

    import sb3_trpo_plus.zoo  # noqa: F401  (registers)

    if command in ("train", "enjoy"):
        # Instead of RL Zoo's default, ppo. An --algo given by the user comes later, and overrides this one.
        arguments = ["--algo", "trpo", *arguments]
    sys.argv = [sys.argv[0], command, *arguments]
    rl_zoo3()  # type: ignore[no-untyped-call]
