"""What RL Zoo's ``ExperimentManager`` does otherwise for the algorithms of this package."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import optuna
import yaml
from gymnasium import spaces
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import sb3_trpo_plus
from sb3_trpo_plus.algorithms.arguments import check_names, names_of
from sb3_trpo_plus.zoo import going_on, vec_envs
from sb3_trpo_plus.zoo.errors import SettingsError
from sb3_trpo_plus.zoo.schedules import make_schedules
from sb3_trpo_plus.zoo.search_spaces import on_top_of, searching_from
from sb3_trpo_plus.zoo.unlisted import settings_for

MARK = "_knows_sb3_trpo_plus"
LEAST_EVALUATIONS = 5


def adapt(manager: Any, algorithms: Mapping[str, type]) -> None:
    """
    Change RL Zoo's manager, for these algorithms alone: it reads this package's files, and understands what they say.

    :param manager: RL Zoo's ``ExperimentManager``; nothing is done if it has been adapted before
    :param algorithms: the classes, by their names in RL Zoo
    """
    if hasattr(manager, MARK):
        return
    for name, change in (*CHANGES.items(), *vec_envs.CHANGES, *going_on.CHANGES):
        original = getattr(manager, name)
        setattr(manager, name, change(original, algorithms))
    setattr(manager, MARK, True)


def hyperparams_file(algo: str) -> Path:
    """
    The RL Zoo file of an algorithm of this package.

    :param algo: its name in RL Zoo, as in ``ALGORITHMS``
    :return: path of the YAML file: inside the installed package, or beside it in a checkout
    :raises FileNotFoundError: the installation lacks it
    """
    file = _of_this_package(f"{algo}.yml")
    if file is None:
        folder = Path(sb3_trpo_plus.__file__).parent
        raise FileNotFoundError(f"{folder} has no hyperparams/{algo}.yml: install sb3-trpo-plus again")
    return file


def _of_this_package(name: str) -> Path | None:
    """A hyperparameter file: inside the installed package, or beside it in a checkout; None if there is none of this name."""
    package = Path(sb3_trpo_plus.__file__).parent
    files = [folder / "hyperparams" / name for folder in (package, package.parent)]
    return next((file for file in files if file.is_file()), None)


def _with_our_files(original: Any, algorithms: Mapping[str, type]) -> Any:
    """
    ``__init__`` with this package's hyperparameter files, unless ``--conf-file`` is given; which may name one of them, such as
    trpo_many.yml, wherever it lies.
    """
    signature = inspect.signature(original)

    @wraps(original)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        call = signature.bind(self, *args, **kwargs)
        algo = call.arguments["algo"]
        named = call.arguments.get("config")
        our_file = algo in algorithms and named is None
        if our_file:
            call.arguments["config"] = str(hyperparams_file(algo))
        elif named is not None and algo in algorithms and not Path(named).exists():
            call.arguments["config"] = str(_of_this_package(named) or named)
        if algo in algorithms:
            not_theirs = " (not of sb3_contrib)" if algo == "trpo" else ""
            print(f"{algorithms[algo].__name__} of sb3_trpo_plus {sb3_trpo_plus.__version__}{not_theirs}")
        original(*call.args, **call.kwargs)
        if our_file:
            _suit_unlisted(self)

    return initialise


def _suit_unlisted(manager: Any) -> None:
    """Make ``default`` suit an environment that has no entry: RL Zoo takes what is found as if the user had asked for it."""
    entries = yaml.safe_load(Path(manager.config).read_text())
    env_id = manager.env_name.gym_id
    if env_id in entries:
        return
    given = manager.custom_hyperparams or {}
    env_kwargs = {**given.get("env_kwargs", {}), **manager.env_kwargs}
    suited, space = settings_for(env_id, env_kwargs, entries["default"], given)
    if manager._is_atari and len(space.shape or ()) == 3:
        return
    # Atari's memory is a vector, which the entry for Atari's pictures does not suit.
    manager._is_atari = False
    manager.custom_hyperparams = {**suited, **given}
    print(f"No entry for {env_id}: `default`, and for its observations, {_in_words(space)}, {suited}")


def _in_words(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Dict):
        return f"Dict({', '.join(f'{key}: {_in_words(part)}' for key, part in space.spaces.items())})"
    return f"Box({space.shape}, {space.dtype})" if isinstance(space, spaces.Box) else str(space)


def _reading_trial_0(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``read_hyperparameters`` that takes ``--trial-id 0`` for a trial, which RL Zoo takes for none."""

    @wraps(original)
    def read(self: Any) -> Any:
        if self.algo in algorithms and self.storage and self.study_name and self.trial_id == 0:
            trial = self.load_trial(self.storage, self.study_name, 0)
            self.custom_hyperparams = {**trial, **(self.custom_hyperparams or {})}
        return original(self)

    return read


def _with_the_entry(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``load_trial`` whose trial keeps what the entry has and the search has not."""

    @wraps(original)
    def load(self: Any, *args: Any, **kwargs: Any) -> Any:
        trial = original(self, *args, **kwargs)
        is_yaml = Path(self.config).suffix in (".yml", ".yaml")
        if self.algo not in algorithms or not is_yaml or not kwargs.get("convert", True):
            return trial
        entries = yaml.safe_load(Path(self.config).read_text())
        entry = entries.get(self.env_name.gym_id) or entries.get("atari" if self._is_atari else "default") or {}
        return on_top_of({**entry, **(self.custom_hyperparams or {})}, trial)

    return load


def _with_our_schedules(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``_preprocess_hyperparams`` that also turns strings such as ``lin_0.02`` into schedules for our own arguments."""

    @wraps(original)
    def preprocess(self: Any, hyperparams: dict[str, Any]) -> Any:
        # Other algorithms may use strings for the same arguments, such as SAC's "auto" for ent_coef.
        if self.algo in algorithms:
            self._entry = dict(hyperparams)
            with _said_in_a_line(self):
                make_schedules(hyperparams)
        processed = original(self, hyperparams)
        if self.algo in algorithms:
            algorithm = algorithms[self.algo]
            with _said_in_a_line(self):
                check_names(processed[0], names_of(algorithm), algorithm.__name__)
        # RL Zoo passes gamma to VecNormalize, which takes no schedule, so it gets the initial value.
        gamma = self.normalize_kwargs.get("gamma")
        if callable(gamma):
            self.normalize_kwargs["gamma"] = gamma(1.0)
        return processed

    return preprocess


@contextmanager
def _said_in_a_line(manager: Any) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise SettingsError(f"Among the hyperparameters of -params and {manager.config}: {error}") from error


def _from_the_entry(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``objective`` whose trials keep what the entry has and the search has not."""

    @wraps(original)
    def objective(self: Any, trial: Any) -> Any:
        with searching_from(self._entry if self.algo in algorithms else {}):
            return original(self, trial)

    return objective


def _evaluated_often(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``create_callbacks`` with at least five evaluations in a run, where the user has not said how many."""

    @wraps(original)
    def create(self: Any) -> None:
        said = going_on.is_going_on() or any(word.startswith("--eval-f") for word in sys.argv)
        if self.algo in algorithms and self.eval_freq > 0 and not said:
            self.eval_freq = max(1, min(self.eval_freq, self.n_timesteps // LEAST_EVALUATIONS))
            # In args.yml, for a training that goes on.
            self.args.eval_freq = self.eval_freq
        original(self)

    return create


def _and_how_to_train_with_it(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``hyperparameters_optimization`` that ends with the command that trains with the best trial."""

    @wraps(original)
    def optimise(self: Any) -> None:
        original(self)
        if self.algo in algorithms and self.storage and self.study_name:
            is_journal = self.storage.endswith(".log")
            storage = JournalStorage(JournalFileBackend(self.storage)) if is_journal else self.storage
            best = optuna.load_study(study_name=self.study_name, storage=storage).best_trial.number
            print(
                f"Train with the best trial: sb3-trpo-plus train --algo {self.algo} --env {self.env_name.gym_id} "
                f"--storage {self.storage} --study-name {self.study_name} --trial-id {best}"
            )

    return optimise


CHANGES = {
    "__init__": _with_our_files,
    "read_hyperparameters": _reading_trial_0,
    "load_trial": _with_the_entry,
    "_preprocess_hyperparams": _with_our_schedules,
    "create_callbacks": _evaluated_often,
    "objective": _from_the_entry,
    "hyperparameters_optimization": _and_how_to_train_with_it,
}
