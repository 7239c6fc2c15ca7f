"""Trainings by RL Zoo on this package's VecEnvs: what ``--vec-env`` names beside RL Zoo's own dummy and subproc."""

import inspect
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo_plus.envs.vec import WorkerVecEnv, make_envpool_vec, make_gymnasium_vec
from sb3_trpo_plus.zoo.errors import SettingsError


class VecEnvError(SettingsError):
    """``--vec-env`` asks for what can't be had; the message says why, and what to do."""


def of_the_kind_that_was_asked_for(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``__init__`` that also takes the names of our VecEnvs, of every algorithm."""
    signature = inspect.signature(original)

    @wraps(original)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        call = signature.bind(self, *args, **kwargs)
        kind = call.arguments.get("vec_env_type", "dummy")
        self._vec_env = kind if kind in MAKERS else None
        if self._vec_env is not None:
            call.arguments["vec_env_type"] = "dummy"
        original(*call.args, **call.kwargs)

    return initialise


def without_wrappers_of_each(original: Any, algorithms: Mapping[str, type]) -> Any:
    """``_preprocess_hyperparams`` that refuses an ``env_wrapper`` where there is no single environment to put it around."""

    @wraps(original)
    def preprocess(self: Any, hyperparams: dict[str, Any]) -> Any:
        wrapper = hyperparams.get("env_wrapper")
        if wrapper and self._vec_env in ALL_AT_ONCE:
            raise VecEnvError(
                f"--vec-env {self._vec_env} steps all environments at once, and env_wrapper, {wrapper}, is for one at a time: "
                "use --vec-env workers, or leave it out with -params env_wrapper:None"
            )
        return original(self, hyperparams)

    return preprocess


def on_our_vec_envs(original: Any, algorithms: Mapping[str, type]) -> Any:
    """
    ``create_envs`` on the VecEnv that was asked for.

    Evaluations stay in a ``DummyVecEnv`` of Gymnasium's environments, so that their figures can be compared whatever is
    trained on.
    """
    # RL Zoo's searches make environments from several threads, and what is changed here is the manager's.
    one_at_a_time = threading.Lock()

    @wraps(original)
    def create(self: Any, n_envs: int, eval_env: bool = False, no_log: bool = False) -> Any:
        if self._vec_env is None:
            return original(self, n_envs, eval_env, no_log)
        with one_at_a_time:
            before = self.vec_env_class
            if not eval_env:
                self.vec_env_class = MAKERS[self._vec_env](self, None if no_log else self.save_path)
            try:
                return original(self, n_envs, eval_env, no_log)
            finally:
                self.vec_env_class = before

    return create


def _workers(manager: Any, log_folder: str | None) -> Callable[..., VecEnv]:
    return WorkerVecEnv


def _gymnasium(manager: Any, log_folder: str | None) -> Callable[..., VecEnv]:
    env_id = manager.env_name.gym_id
    if gym.spec(env_id).vector_entry_point is None:
        print(
            f"There is no vector environment of Gymnasium's for {env_id}, and its SyncVectorEnv steps one environment after "
            "the other, as --vec-env dummy does: --vec-env workers is faster"
        )
    return _at_once(manager, log_folder, make_gymnasium_vec)


def _envpool(manager: Any, log_folder: str | None) -> Callable[..., VecEnv]:
    return _at_once(manager, log_folder, make_envpool_vec)


def _at_once(manager: Any, log_folder: str | None, make: Callable[..., VecEnv]) -> Callable[..., VecEnv]:
    """In the place of a VecEnv's class: takes from RL Zoo's makers of single environments how many there are to be."""
    if log_folder is not None and not manager.monitor_kwargs.get("override_existing", True):
        _keep_episodes(Path(log_folder))

    def made(makers: list[Any], **_: Any) -> VecEnv:
        env_id, env_kwargs = manager.env_name.gym_id, manager.env_kwargs
        try:
            return make(env_id, len(makers), manager.seed, monitor_dir=log_folder, env_kwargs=env_kwargs)
        except (ImportError, TypeError, ValueError) as error:
            raise VecEnvError(f"--vec-env {manager._vec_env}: {error}") from error

    return made


def _keep_episodes(folder: Path) -> None:
    """A training that goes on begins new files; those before stay beside them under numbers that are free."""
    written = {int(path.name.split(".")[0]): path for path in folder.glob("[0-9]*.monitor.csv")}
    for number, path in written.items():
        path.rename(folder / f"{number + max(written) + 1}.monitor.csv")


MAKERS: dict[str, Callable[[Any, str | None], Callable[..., VecEnv]]] = {
    "workers": _workers,
    "gymnasium": _gymnasium,
    "envpool": _envpool,
}
ALL_AT_ONCE = ("gymnasium", "envpool")

CHANGES = (
    ("__init__", of_the_kind_that_was_asked_for),
    ("_preprocess_hyperparams", without_wrappers_of_each),
    ("create_envs", on_our_vec_envs),
)
