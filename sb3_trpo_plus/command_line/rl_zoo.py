"""RL Zoo's commands, with this package's algorithms registered."""

import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from rl_zoo3.enjoy import enjoy as _enjoy
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.train import train as _train

import sb3_trpo_plus.zoo  # noqa: F401  (registers)
from sb3_trpo_plus.command_line import interrupts
from sb3_trpo_plus.command_line.resume import HELP, resuming
from sb3_trpo_plus.command_line.runs import asks_for_help, look_here_too, of_newest_run, with_defaults
from sb3_trpo_plus.zoo.errors import SettingsError
from sb3_trpo_plus.zoo.vec_envs import MAKERS


def train(arguments: list[str]) -> None:
    """RL Zoo's ``train``; the algorithm is ours if none is named. With ``--resume`` it goes on with a run."""
    with _with_our_vec_envs(), _heeding_interrupts():
        if asks_for_help(arguments):
            print(HELP)
            _run("train", _train, with_defaults(["--help"]))
        try:
            with resuming(arguments) as words:
                _run("train", _train, words)
        except SettingsError as error:
            sys.exit(str(error))


def enjoy(arguments: list[str]) -> None:
    """RL Zoo's ``enjoy``, of the newest run under ``logs`` that has a model unless the arguments say otherwise."""
    _run("enjoy", _enjoy, of_newest_run(arguments))


def plot_train(arguments: list[str]) -> None:
    """RL Zoo's ``plot_train``; without a screen, into a file."""
    _plot("plot_train", arguments)


def plot_from_file(arguments: list[str]) -> None:
    """RL Zoo's ``plot_from_file``; without a screen, into files."""
    _plot("plot_from_file", arguments)


def all_plots(arguments: list[str]) -> None:
    """RL Zoo's ``all_plots``; without a screen, into files."""
    _plot("all_plots", arguments)


@contextmanager
def _heeding_interrupts() -> Iterator[None]:
    """A training does not begin after a Ctrl-C that was swallowed while everything was imported and made."""
    original = ExperimentManager.learn

    def learn(self: Any, model: Any) -> None:
        interrupts.check()
        original(self, model)

    with patch.object(ExperimentManager, "learn", learn):
        yield


@contextmanager
def _with_our_vec_envs() -> Iterator[None]:
    """RL Zoo's parser has our names among the choices of ``--vec-env``, and so have its help and the run's ``args.yml``."""
    add = ArgumentParser.add_argument

    def add_argument(self: ArgumentParser, *names: Any, **kwargs: Any) -> Any:
        if "--vec-env" in names:
            kwargs["choices"] = [*kwargs["choices"], *MAKERS]
        return add(self, *names, **kwargs)

    with patch.object(ArgumentParser, "add_argument", add_argument):
        yield


def _run(command: str, run: Callable[[], Any], arguments: list[str]) -> None:
    if any(word.startswith("--gym-p") for word in arguments):
        look_here_too()
    sys.argv = [f"sb3-trpo-plus {command}", *arguments]
    run()


def _plot(command: str, arguments: list[str]) -> None:
    from matplotlib import pyplot as plt
    from rl_zoo3 import plots

    show = plt.show

    def show_or_save(*args: Any, **kwargs: Any) -> None:
        has_screen = getattr(plt.gcf().canvas, "required_interactive_framework", None) is not None
        show(*args, **kwargs) if has_screen else _save_figures(command)

    with patch.object(plt, "show", show_or_save):
        _run(command, getattr(plots, command), _with_folder_names(arguments))


def _with_folder_names(arguments: list[str]) -> list[str]:
    """RL Zoo looks for ids as it is given them among folders whose names have a dash for a slash."""
    named, within = [], False
    for word in arguments:
        within = word in ("-e", "--env") or (within and not word.startswith("-"))
        named.append(word.replace("/", "-") if within else word)
    return named


def _save_figures(command: str) -> None:
    from matplotlib import pyplot as plt

    for number in plt.get_fignums():
        figure = plt.figure(number)
        title = figure.get_label() or (figure.axes[0].get_title() if figure.axes else "") or str(number)
        if not any(axes.has_data() for axes in figure.axes):
            print(f"{title}: nothing to draw; RL Zoo averages over 100 episodes, and leaves out shorter runs (-w 10: over 10)")
            continue
        file = f"{command}_{re.sub(r'[^A-Za-z0-9.]+', '-', str(title)).strip('-')}.png"
        figure.savefig(file, dpi=150)
        print(f"There is no screen: saved {os.path.abspath(file)}")
    plt.close("all")
