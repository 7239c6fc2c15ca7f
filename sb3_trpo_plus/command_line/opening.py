"""
What the commands open is read as data: models, statistics, and RL Zoo's ``config.yml``, ``args.yml`` and hyperparameter files.

RL Zoo unpickles statistics, lets YAML make any object, and evaluates text as Python. While a command runs, those places have
other functions; with ``--trust``, they stay as they are.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import rl_zoo3.enjoy
import yaml
from rl_zoo3 import exp_manager, utils
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo_plus.algorithms.base import KLControlled
from sb3_trpo_plus.command_line.runs import given
from sb3_trpo_plus.files.errors import UnsafeFileError
from sb3_trpo_plus.files.rebuild import rebuilt
from sb3_trpo_plus.files.statistics import load_vec_normalize
from sb3_trpo_plus.zoo.data_only import TRUST, check_names, expression, read_yaml

FLAG = "--trust"


@contextmanager
def opened_as_data(command: str, arguments: list[str]) -> Iterator[list[str]]:
    """
    While this lasts, RL Zoo's functions and the algorithms read files as data, unless ``--trust`` is among the arguments.

    :param command: that will run
    :param arguments: of the command line
    :return: the arguments without ``--trust``
    """
    with ExitStack() as stack:
        if FLAG in arguments:
            stack.enter_context(patch.object(KLControlled, "load", classmethod(_trusting_load())))
        else:
            packages = given(arguments).gym_packages
            saved_hyperparams = _saved_hyperparams(packages)
            for owner, name, value in (
                (VecNormalize, "load", staticmethod(load_vec_normalize)),
                (yaml, "load", _yaml_load()),
                (utils, "get_saved_hyperparams", saved_hyperparams),
                (rl_zoo3, "get_saved_hyperparams", saved_hyperparams),
                (rl_zoo3.enjoy, "get_saved_hyperparams", saved_hyperparams),
                (exp_manager, "eval", expression),
                (exp_manager.ExperimentManager, "read_hyperparameters", _read_hyperparameters(packages)),
            ):
                stack.enter_context(patch.object(owner, name, value, create=name == "eval"))
            if command == "plot_from_file":
                # Not rl_zoo3.plots.plot_from_file, which is the function.
                module = import_module("rl_zoo3.plots.plot_from_file")
                stack.enter_context(patch.object(module, "pickle", SimpleNamespace(load=_results)))
        yield [argument for argument in arguments if argument != FLAG]


def _trusting_load() -> Any:
    load: Any = KLControlled.load.__func__  # type: ignore[attr-defined]

    def trusting(cls: type, *args: Any, **kwargs: Any) -> Any:
        return load(cls, *args, trust=True, **kwargs)

    return trusting


def _results(file: Any) -> Any:
    """What ``all_plots -o`` pickled: arrays and tables of results."""
    try:
        return rebuilt(file.read())
    except UnsafeFileError as error:
        raise UnsafeFileError(f"The file {file.name!r} is refused: it has {error}. {TRUST}") from error


def _yaml_load() -> Any:
    original = yaml.load

    def load(stream: Any, Loader: Any) -> Any:
        return read_yaml(Path(stream.name)) if Loader is yaml.UnsafeLoader else original(stream, Loader)

    return load


def _saved_hyperparams(packages: list[str]) -> Any:
    original = utils.get_saved_hyperparams

    def saved_hyperparams(stats_path: str, *args: Any, **kwargs: Any) -> Any:
        # Only here: elsewhere in that module, what the user wrote on the command line is evaluated.
        with patch.object(utils, "eval", expression, create=True):
            hyperparams, path = original(stats_path, *args, **kwargs)
        check_names(hyperparams, packages, f"The file {str(Path(stats_path, 'config.yml'))!r}")
        return hyperparams, path

    return saved_hyperparams


def _read_hyperparameters(packages: list[str]) -> Any:
    original = exp_manager.ExperimentManager.read_hyperparameters

    def read(self: Any) -> Any:
        whose = f"The file {str(self.config)!r}"
        if Path(self.config).suffix not in (".yml", ".yaml"):
            raise UnsafeFileError(f"{whose} is refused: it is Python, which would run. {TRUST}")
        read_yaml(Path(self.config))
        hyperparams, saved = original(self)
        of_the_user = self.custom_hyperparams or {}
        check_names({name: value for name, value in hyperparams.items() if name not in of_the_user}, packages, whose)
        return hyperparams, saved

    return read
