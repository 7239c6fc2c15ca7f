"""
What the commands open is read as data: models, statistics, and RL Zoo's ``config.yml``, ``args.yml`` and hyperparameter files.

RL Zoo unpickles statistics, lets YAML make any object, and evaluates text as Python; SB3 unpickles models and replay buffers.
While a command runs, those places have other functions; with ``--trust``, they stay as they are.
"""

import io
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch

import huggingface_sb3
import numpy as np
import rl_zoo3.enjoy
import yaml
from rl_zoo3 import exp_manager, utils
from sb3_contrib.ars import ars
from stable_baselines3.common import base_class, off_policy_algorithm
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo_plus.algorithms.base import KLControlled
from sb3_trpo_plus.command_line.runs import given
from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.rebuild import rebuilt
from sb3_trpo_plus.files.statistics import load_vec_normalize
from sb3_trpo_plus.zoo.data_only import TRUST, check_env_kwargs, check_zip, checked, expression, read_yaml

FLAG = "--trust"
_PACKAGES = "Policies and features extractors of your own are found by --gym-packages MODULE"


@contextmanager
def opened_as_data(command: str, arguments: list[str]) -> Iterator[list[str]]:
    """
    While this lasts, RL Zoo's functions and the algorithms read files as data, unless ``--trust`` is among the arguments.

    :param command: that will run
    :param arguments: of the command line
    :return: the arguments without ``--trust``
    """
    with ExitStack() as stack, _in_words_of_commands():
        if FLAG in arguments:
            stack.enter_context(patch.object(KLControlled, "load", classmethod(_trusting_load())))
        else:
            packages = given(arguments).gym_packages
            saved_hyperparams = _saved_hyperparams(packages)
            download = _checked_download()
            for owner, name, value in (
                (KLControlled, "load", classmethod(_load_with_classes_of(packages))),
                (BaseAlgorithm, "load", classmethod(_load_of_ours())),
                (base_class, "load_from_zip_file", _only_clean_archives()),
                (ars, "load_from_zip_file", _only_clean_archives()),
                (off_policy_algorithm, "load_from_pkl", _refuse_replay_buffer),
                (np, "load", _checked_arrays()),
                (huggingface_sb3, "load_from_hub", download),
                (import_module("rl_zoo3.load_from_hub"), "load_from_hub", download),
                (VecNormalize, "load", staticmethod(load_vec_normalize)),
                (yaml, "load", _yaml_load()),
                (utils, "get_saved_hyperparams", saved_hyperparams),
                (rl_zoo3, "get_saved_hyperparams", saved_hyperparams),
                (rl_zoo3.enjoy, "get_saved_hyperparams", saved_hyperparams),
                (exp_manager, "eval", expression),
                (exp_manager.ExperimentManager, "read_hyperparameters", _read_hyperparameters()),
            ):
                stack.enter_context(patch.object(owner, name, value, create=name == "eval"))
            if command == "plot_from_file":
                # Not rl_zoo3.plots.plot_from_file, which is the function.
                module = import_module("rl_zoo3.plots.plot_from_file")
                stack.enter_context(patch.object(module, "pickle", SimpleNamespace(load=_results)))
        yield [argument for argument in arguments if argument != FLAG]


@contextmanager
def _in_words_of_commands() -> Iterator[None]:
    """Errors that say what can be done on a command line, in the place of what can be done in Python."""
    try:
        yield
    except ModelFileError as error:
        if not error.ways:
            raise
        ways = [_PACKAGES] if "safe_globals" in error.ways else []
        ways += [TRUST] if isinstance(error, UnsafeFileError) else []
        raise type(error)(error.found, "; or ".join(ways)) from error


def _load_with_classes_of(packages: list[str]) -> Any:
    """``load`` of files that may name policies and features extractors in modules that the user named."""
    load: Any = KLControlled.load.__func__  # type: ignore[attr-defined]

    def with_classes(cls: type, *args: Any, **kwargs: Any) -> Any:
        modules = [name for name in list(sys.modules) if any(f"{name}.".startswith(f"{package}.") for package in packages)]
        classes = [one for name in modules for one in vars(sys.modules[name]).values() if _is_of_policies(one, name)]
        return load(cls, *args, **{"safe_globals": classes, **kwargs})

    return with_classes


def _is_of_policies(value: Any, module: str) -> bool:
    bases = (BasePolicy, BaseFeaturesExtractor)
    return isinstance(value, type) and issubclass(value, bases) and value.__module__ == module


def _trusting_load() -> Any:
    load: Any = KLControlled.load.__func__  # type: ignore[attr-defined]

    def trusting(cls: type, *args: Any, **kwargs: Any) -> Any:
        # A training that goes on says so itself.
        return load(cls, *args, **{**kwargs, "trust": True})

    return trusting


def _load_of_ours() -> Any:
    original: Any = BaseAlgorithm.load.__func__  # type: ignore[attr-defined]

    def load(cls: type, path: Any, *args: Any, **kwargs: Any) -> Any:
        if not issubclass(cls, KLControlled):
            _refuse(
                path,
                f"a model of {cls.__name__}, which SB3 would unpickle; only this package's algorithms read models as data",
            )
        return original(cls, path, *args, **kwargs)

    return load


def _only_clean_archives() -> Any:
    """``load_from_zip_file`` of what our algorithms hand to SB3, which is an archive in memory, and of nothing else."""

    def load(load_path: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(load_path, io.BytesIO):
            _refuse(load_path, "a model that SB3 would unpickle")
        return load_from_zip_file(load_path, *args, **kwargs)

    return load


def _refuse_replay_buffer(path: Any, *_: Any, **__: Any) -> NoReturn:
    _refuse(path, "a replay buffer, which SB3 would unpickle")


def _refuse(path: Any, what: str) -> NoReturn:
    raise UnsafeFileError(f"The file {str(path)!r} is refused: it is {what}. {TRUST}")


def _checked_arrays() -> Any:
    original = np.load

    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, (str, Path)) and zipfile.is_zipfile(file):
            check_zip(Path(file))
        return original(file, *args, **kwargs)

    return load


def _checked_download() -> Any:
    """``load_from_hub`` whose zips RL Zoo can extract."""
    original = huggingface_sb3.load_from_hub

    def load_from_hub(repo_id: str, filename: str) -> Any:
        path = original(repo_id, filename)
        # The metrics; a model, which is not extracted, is checked where it is loaded.
        if filename == "train_eval_metrics.zip":
            check_zip(Path(path))
        return path

    return load_from_hub


def _results(file: Any) -> Any:
    """What ``all_plots -o`` pickled: arrays and tables of results."""
    try:
        return rebuilt(file.read())
    except UnsafeFileError as error:
        raise UnsafeFileError(f"The file {file.name!r} is refused: it has {error}. {TRUST}") from error


def _yaml_load() -> Any:
    original = yaml.load

    def load(stream: Any, Loader: Any) -> Any:
        if Loader is not yaml.UnsafeLoader:
            return original(stream, Loader)
        loaded = read_yaml(Path(stream.name))
        if isinstance(loaded, dict):
            check_env_kwargs(loaded.get("env_kwargs"), f"The file {stream.name!r}")
        return loaded

    return load


def _saved_hyperparams(packages: list[str]) -> Any:
    original = utils.get_saved_hyperparams

    def saved_hyperparams(stats_path: str, *args: Any, **kwargs: Any) -> Any:
        # Only here: elsewhere in that module, what the user wrote on the command line is evaluated.
        with patch.object(utils, "eval", expression, create=True):
            hyperparams, path = original(stats_path, *args, **kwargs)
        return checked(hyperparams, packages, f"The file {str(Path(stats_path, 'config.yml'))!r}"), path

    return saved_hyperparams


def _read_hyperparameters() -> Any:
    original = exp_manager.ExperimentManager.read_hyperparameters

    def read(self: Any) -> Any:
        whose = f"The file {str(self.config)!r}"
        if Path(self.config).suffix not in (".yml", ".yaml"):
            raise UnsafeFileError(f"{whose} is refused: it is Python, which would run. {TRUST}")
        read_yaml(Path(self.config))
        hyperparams, saved = original(self)
        of_the_user = {*(self.custom_hyperparams or {}), *(["env_kwargs"] if self.env_kwargs else [])}
        of_the_file = checked(
            {name: hyperparams[name] for name in hyperparams if name not in of_the_user}, self.args.gym_packages, whose
        )
        hyperparams.update(of_the_file)
        saved.update(of_the_file)
        return hyperparams, saved

    return read
