"""Trainings by RL Zoo that stop when they are asked to, and go on later: what its ``ExperimentManager`` does otherwise."""

import inspect
import multiprocessing
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from pprint import pprint
from typing import Any

import yaml
from huggingface_sb3 import EnvironmentName
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_trpo_plus.algorithms.checkpoint import TrainingCheckpoint
from sb3_trpo_plus.envs.states import Restorable
from sb3_trpo_plus.files.checkpoint import CHECKPOINTS
from sb3_trpo_plus.files.errors import UnsafeFileError
from sb3_trpo_plus.zoo.data_only import check_env_kwargs, checked, read_yaml
from sb3_trpo_plus.zoo.errors import SettingsError

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_run: ContextVar[Path | None] = ContextVar("_run", default=None)


@contextmanager
def going_on_with(run: Path) -> Iterator[None]:
    """
    The training that begins meanwhile goes on with that of a run.

    :param run: folder of the run, with checkpoints in it
    """
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


def is_going_on() -> bool:
    """Whether the training that begins goes on with that of a run."""
    return _run.get() is not None


def in_its_folder(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``__init__`` with the folder and the hyperparameters of the run that it goes on with."""
    signature = inspect.signature(original)

    @wraps(original)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        run = _run.get()
        if run is None:
            original(self, *args, **kwargs)
            return
        call = signature.bind(self, *args, **kwargs)
        params_path = f"{run}/{EnvironmentName(call.arguments['env_id'])}"
        # It has what was said with -params, too.
        call.arguments.update(config=f"{params_path}/config.yml", hyperparams=None)
        original(*call.args, **call.kwargs)
        self.save_path, self.params_path, self.continue_training = str(run), params_path, True

    return initialise


def as_the_run_has_them(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``read_hyperparameters`` of the run that it goes on with."""

    @wraps(original)
    def read(self: Any) -> Any:
        if not is_going_on():
            return original(self)
        print(f"Loading hyperparameters from: {self.config}")
        # As RL Zoo itself reads it elsewhere, which the command may have been told to read as data.
        with open(self.config) as file:
            saved = yaml.load(file, Loader=yaml.UnsafeLoader)
        pprint(saved)
        return dict(saved), saved

    return read


def with_its_model(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``_load_pretrained_agent`` with the model of the run that it goes on with."""

    @wraps(original)
    def load(self: Any, hyperparams: dict[str, Any], env: Any) -> Any:
        run = _run.get()
        if run is None:
            return original(self, hyperparams, env)
        algorithm: Any = algorithms[self.algo]
        settings = {"tensorboard_log": self.tensorboard_log, "verbose": self.verbose}
        try:
            model = algorithm.resume(run / CHECKPOINTS, env, self.device, **settings)
        except (OSError, ValueError) as error:
            raise SettingsError(f"{run} can't go on: {error}") from error
        print(f"Going on with {run}, after {model.num_timesteps} steps of {self.n_timesteps}")
        return model

    return load


def as_it_was_said(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``_save_config`` that leaves the arguments with which a run began in their place."""

    @wraps(original)
    def save(self: Any, hyperparams: dict[str, Any]) -> None:
        if not is_going_on():
            original(self, hyperparams)

    return save


def whose_states_are_saved(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``create_envs`` whose environments can be saved in worker processes, too, and whose monitors append to a run's files."""

    @wraps(original)
    def create(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.algo not in algorithms or self.optimize_hyperparameters:
            return original(self, *args, **kwargs)
        before = self.env_wrapper, self.monitor_kwargs
        if issubclass(self.vec_env_class, SubprocVecEnv):
            self.env_wrapper = _restorable(self.env_wrapper)
        if is_going_on():
            self.monitor_kwargs = {**self.monitor_kwargs, "override_existing": False}
        try:
            return original(self, *args, **kwargs)
        finally:
            self.env_wrapper, self.monitor_kwargs = before

    return create


def _restorable(wrapper: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    def wrap(env: Any) -> Any:
        # A terminal sends SIGINT to workers, too, which would end before the update does that is to be finished.
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return Restorable(env if wrapper is None else wrapper(env))

    return wrap


def with_checkpoints(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``create_callbacks`` with a ``TrainingCheckpoint``."""

    @wraps(original)
    def create(self: Any) -> None:
        original(self)
        if self.algo in algorithms and not self.optimize_hyperparameters:
            self.callbacks.append(TrainingCheckpoint(Path(self.save_path) / CHECKPOINTS))

    return create


def until_a_signal(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``learn`` that SIGINT or SIGTERM ends after the update, and a second one at once."""

    @wraps(original)
    def learn(self: Any, model: Any) -> None:
        checkpoints = [one for one in self.callbacks if isinstance(one, TrainingCheckpoint)]
        self._signals = []
        if not checkpoints or threading.current_thread() is not threading.main_thread():
            original(self, model)
            return

        def stop(number: int, _: Any) -> None:
            self._signals.append(number)
            checkpoints[0].stop()
            put_back()
            # Not print, which must not be called again within itself.
            os.write(2, b"\nStopping after this update. Once more stops at once.\n")

        def put_back() -> None:
            for one, handler in before.items():
                signal.signal(one, handler)

        before = {one: signal.signal(one, stop) for one in SIGNALS}
        try:
            original(self, model)
        finally:
            put_back()

    return learn


def and_how_to_go_on(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``save_trained_model`` that, after a signal, says how to go on, and ends the process as signals do."""

    @wraps(original)
    def save(self: Any, model: Any) -> None:
        original(self, model)
        if getattr(self, "_signals", []):
            print(f"Stopped after {model.num_timesteps} steps. {_way_on(self)}")
            sys.exit(128 + self._signals[0])

    return save


def _way_on(manager: Any) -> str:
    if not any(one.newest for one in manager.callbacks if isinstance(one, TrainingCheckpoint)):
        return "There is no checkpoint to go on with, which the first update is followed by"
    trust = " --trust" if _needs_trust(manager) else ""
    return f"Go on: sb3-trpo-plus train --resume {shlex.quote(manager.save_path)}{trust}"


def _needs_trust(manager: Any) -> bool:
    """Whether the run's settings have what is not read as data, such as a class of the user's own."""
    try:
        arguments, config = (read_yaml(Path(manager.params_path, name)) for name in ("args.yml", "config.yml"))
        check_env_kwargs(arguments.get("env_kwargs"), "args.yml")
        checked(config, arguments.get("gym_packages", []), "config.yml")
    except UnsafeFileError:
        return True
    return False


# In this order; the last change is the outermost.
CHANGES = (
    ("__init__", in_its_folder),
    ("read_hyperparameters", as_the_run_has_them),
    ("_load_pretrained_agent", with_its_model),
    ("_save_config", as_it_was_said),
    ("create_envs", whose_states_are_saved),
    ("create_callbacks", with_checkpoints),
    ("learn", until_a_signal),
    ("save_trained_model", and_how_to_go_on),
)
