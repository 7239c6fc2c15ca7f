"""Registration of the algorithms with RL Zoo, and the patches of RL Zoo that this takes."""

import importlib
import inspect
from functools import wraps
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from gymnasium import spaces
from huggingface_sb3 import EnvironmentName
from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import (
    HYPERPARAMS_CONVERTER,
    HYPERPARAMS_SAMPLER,
)
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

import sb3_trpo_plus
from sb3_trpo_plus.algorithms.arguments import SCHEDULES
from sb3_trpo_plus.algorithms.npg import NPG
from sb3_trpo_plus.algorithms.ppo_penalty import PPOPenalty
from sb3_trpo_plus.algorithms.trpo import TRPO
from sb3_trpo_plus.algorithms.vine import VineTRPO
from sb3_trpo_plus.files.statistics import load_vec_normalize
from sb3_trpo_plus.zoo.search_spaces import SEARCH

MARK = "_reads_the_files_of_sb3_trpo_plus"

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"trpo": TRPO, "npg": NPG, "trpo_vine": VineTRPO, "ppo_penalty": PPOPenalty}


def hyperparams_file(algo: str) -> Path:
    """
    The RL Zoo file of an algorithm of this package.

    :param algo: its name in RL Zoo, as in ``ALGORITHMS``
    :return: path of the YAML file: inside the installed package, or beside it in a checkout
    :raises FileNotFoundError: the installation lacks it
    """
    package = Path(sb3_trpo_plus.__file__).parent
    for folder in (package, package.parent):
        file = folder / "hyperparams" / f"{algo}.yml"
        if file.is_file():
            return file
    raise FileNotFoundError(f"{package} has no hyperparams/{algo}.yml: install sb3-trpo-plus again")


def whose(algo: str) -> str:
    """One line for the log that says which class of which package a run uses."""
    not_theirs = " (not of sb3_contrib)" if algo == "trpo" else ""
    return f"{ALGORITHMS[algo].__name__} of sb3_trpo_plus {sb3_trpo_plus.__version__}{not_theirs}"


def register() -> None:
    """Register the algorithms, their hyperparameter files and search spaces with RL Zoo. Calling it again changes nothing."""
    for algo, algorithm in ALGORITHMS.items():
        ALGOS[algo] = algorithm
        HYPERPARAMS_SAMPLER[algo], HYPERPARAMS_CONVERTER[algo] = SEARCH[algo]
    # RL Zoo loads statistics by VecNormalize.load, which can't read those saved with Gym's spaces.
    setattr(VecNormalize, "load", staticmethod(load_vec_normalize))  # noqa: B010
    # Not there yet where RL Zoo imports custom_envs from this very module; RL Zoo's commands import it later than that.
    manager = getattr(importlib.import_module("rl_zoo3.exp_manager"), "ExperimentManager", None)
    if manager is not None and not hasattr(manager, MARK):
        manager.__init__ = _with_our_files(manager.__init__)
        manager._preprocess_hyperparams = _with_our_schedules(manager._preprocess_hyperparams)
        setattr(manager, MARK, True)


def _with_our_files(original: Any) -> Any:
    """``ExperimentManager.__init__`` with this package's hyperparameter files, unless ``--conf-file`` is given."""
    signature = inspect.signature(original)

    @wraps(original)
    def initialise(*args: Any, **kwargs: Any) -> None:
        call = signature.bind(*args, **kwargs)
        algo = call.arguments["algo"]
        if algo in ALGORITHMS:
            if call.arguments.get("config") is None:
                call.arguments["config"] = str(hyperparams_file(algo))
                call.arguments["hyperparams"] = {
                    **_for_unlisted(algo, call.arguments),
                    **(call.arguments.get("hyperparams") or {}),
                }
            print(whose(algo))
        original(*call.args, **call.kwargs)

    return initialise


def _for_unlisted(algo: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Overrides for an environment without an entry of its own: no ``normalize`` where VecNormalize rejects the space."""
    env_id = EnvironmentName(arguments["env_id"]).gym_id
    if env_id in yaml.safe_load(hyperparams_file(algo).read_text()):
        return {}
    with gym.make(env_id, **(arguments.get("env_kwargs") or {})) as env:
        space = env.observation_space
    return {} if isinstance(space, (spaces.Box, spaces.Dict)) else {"normalize": False}


def _with_our_schedules(original: Any) -> Any:
    """``_preprocess_hyperparams`` that also turns strings such as ``lin_0.02`` into schedules for our own arguments."""

    @wraps(original)
    def preprocess(self: Any, hyperparams: dict[str, Any]) -> Any:
        # Other algorithms may use strings for the same arguments, such as SAC's "auto" for ent_coef.
        if self.algo in ALGORITHMS:
            for name in SCHEDULES:
                if isinstance(hyperparams.get(name), str):
                    hyperparams[name] = _schedule(name, hyperparams[name])
        processed = original(self, hyperparams)
        # RL Zoo passes gamma to VecNormalize, which takes no schedule, so it gets the initial value.
        gamma = self.normalize_kwargs.get("gamma")
        if callable(gamma):
            self.normalize_kwargs["gamma"] = gamma(1.0)
        return processed

    return preprocess


def _schedule(name: str, words: str) -> LinearSchedule:
    """
    A linear schedule from its description in a hyperparameter file.

    :param name: of the argument, for the error message
    :param words: ``lin_0.02``: from 0.02 to 0, as in RL Zoo; ``lin_0.99_0.997``: from the first number to the second
    :raises ValueError: the description has another form
    """
    kind, *ends = words.split("_")
    try:
        start, end = map(float, ends if len(ends) == 2 else [*ends, "0"])
    except ValueError:
        kind = ""
    if kind != "lin":
        raise ValueError(f"{name} must be a number, lin_START or lin_START_END, but it is {words!r}")
    return LinearSchedule(start, end, 1.0)
