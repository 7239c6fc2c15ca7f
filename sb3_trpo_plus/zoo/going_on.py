"""Trainings by RL Zoo that stop when they are asked to, and go on later: what its ``ExperimentManager`` does otherwise."""

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
from typing import Any

from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_trpo_plus.algorithms.checkpoint import TrainingCheckpoint
from sb3_trpo_plus.envs.states import Restorable
from sb3_trpo_plus.files.checkpoint import Checkpoint, newest_checkpoint

# In the folder of a run.
CHECKPOINTS = "checkpoints"
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


def in_its_folder(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``__init__`` with the folder and the seed of the run that it goes on with."""

    @wraps(original)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        run = _run.get()
        if run is not None:
            self.save_path, self.params_path = str(run), f"{run}/{self.env_name}"
            self.seed = Checkpoint.read(newest_checkpoint(run / CHECKPOINTS)).progress["seed"]

    return initialise


def with_its_model(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``setup_experiment`` with the model of the run that it goes on with."""

    @wraps(original)
    def set_up(self: Any) -> Any:
        experiment, run = original(self), _run.get()
        if run is None or experiment is None:
            return experiment
        new, hyperparams = experiment
        settings = {"tensorboard_log": self.tensorboard_log, "verbose": self.verbose}
        model = type(new).resume(run / CHECKPOINTS, new.get_env(), self.device, **settings)
        print(f"Going on with {run}, after {model.num_timesteps} steps")
        return model, hyperparams

    return set_up


def as_it_was_said(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``_save_config`` that leaves the arguments with which a run began in their place."""

    @wraps(original)
    def save(self: Any, hyperparams: dict[str, Any]) -> None:
        if _run.get() is None:
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
        if _run.get() is not None:
            self.monitor_kwargs = {**self.monitor_kwargs, "override_existing": False}
        try:
            with _deaf_to_interrupts():
                return original(self, *args, **kwargs)
        finally:
            self.env_wrapper, self.monitor_kwargs = before

    return create


def _restorable(wrapper: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    return lambda env: Restorable(env if wrapper is None else wrapper(env))


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """
    Processes that are started meanwhile ignore SIGINT.

    A terminal sends it to workers, too, which would end before the update does that is to be finished.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
            print(f"Stopped after {model.num_timesteps} steps. Go on: sb3-trpo-plus train {shlex.join(sys.argv[1:])} --resume")
            sys.exit(128 + self._signals[0])

    return save


# In this order; the last change is the outermost.
CHANGES = (
    ("__init__", in_its_folder),
    ("setup_experiment", with_its_model),
    ("_save_config", as_it_was_said),
    ("create_envs", whose_states_are_saved),
    ("create_callbacks", with_checkpoints),
    ("learn", until_a_signal),
    ("save_trained_model", and_how_to_go_on),
)
