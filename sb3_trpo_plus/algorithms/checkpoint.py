"""The callback that saves a training, to be resumed."""

import time
import warnings
from os import PathLike
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo_plus.algorithms.arguments import AT_LEAST_0, COUNT, checked
from sb3_trpo_plus.algorithms.progress import environments_of, taken
from sb3_trpo_plus.files.checkpoint import checkpoints_in, remove_old
from sb3_trpo_plus.rollouts.callbacks import KNOWN, family


class TrainingCheckpoint(BaseCallback):
    """
    Saves the whole training after updates, for :meth:`TRPO.resume`, which goes on as if it had never stopped.

    A file is complete or not there, whenever the process is killed. It has what ``model.save`` writes and, beside that, the
    counters, the random generators, the normalisation and episode statistics, and the states of the environments (see
    :mod:`sb3_trpo_plus.states`), which are pickles: share models, and keep checkpoints to yourself.

    :param folder: where the files go, one for each training; it is created if there is none
    :param keep: how many files are kept, the newest; at least 1
    :param seconds: the least time between two, at least 0, which saves after every update; after the first and the last
        one always
    :param verbose: 1 prints a line for each file
    """

    def __init__(self, folder: str | PathLike[str], keep: int = 2, seconds: float = 30.0, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.folder = Path(folder)
        self.keep = checked("keep", keep, COUNT)
        self.seconds = checked("seconds", seconds, AT_LEAST_0)
        self._is_stopping = False
        self._next = 0.0
        self._saves_environments = True

    @property
    def newest(self) -> Path | None:
        """Path of the file in the folder that has the most steps; None if there is none yet."""
        found = checkpoints_in(self.folder)
        return found[-1][1] if found else None

    def stop(self) -> None:
        """
        Let ``learn`` finish its update, save, and return. To be called from a handler of signals, say.

        Before ``learn``, it holds for the next one, which returns after its first update.
        """
        self._is_stopping = True

    def _init_callback(self) -> None:
        if not hasattr(self.model, "resume"):
            raise TypeError(
                f"TrainingCheckpoint saves the trainings of sb3_trpo_plus, and {type(self.model).__name__} is not of its "
                "algorithms: use SB3's CheckpointCallback"
            )
        self.folder.mkdir(parents=True, exist_ok=True)

    def _on_training_start(self) -> None:
        self._next = time.monotonic()
        ahead = [path for steps, path in checkpoints_in(self.folder) if steps > self.model.num_timesteps]
        if ahead:
            raise ValueError(
                f"{ahead[-1]} is of a training that was further than this one, after {self.model.num_timesteps} steps: go on "
                f"with it, by {type(self.model).__name__}.resume, name another folder, or remove it"
            )

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        # Not where a training begins, since it may have been asked to stop before that.
        self._is_stopping = False

    def on_update_end(self, callback: BaseCallback) -> bool:
        """
        Called by ``learn`` between two iterations.

        :param callback: the one that ``learn`` was given, which may be this one or call it
        :return: False if it should end here
        """
        is_last = self.model.num_timesteps >= self.model._total_timesteps
        if self._is_stopping or is_last or time.monotonic() >= self._next:
            self._save(callback)
            self._next = time.monotonic() + self.seconds
        return not self._is_stopping

    def _save(self, callback: BaseCallback) -> None:
        environments = None
        if self._saves_environments:
            try:
                environments = environments_of(self.training_env, callback)
            except TypeError as error:
                self._saves_environments = False
                warnings.warn(f"A training that is resumed from these checkpoints will reset its environments: {error}")
        checkpoint = taken(self.model, callback, environments)
        try:
            path = checkpoint.write(self.folder)
        except OSError as error:
            # An end here would lose more than the checkpoint.
            warnings.warn(f"The training goes on without a checkpoint after {self.model.num_timesteps} steps: {error}")
            return
        remove_old(self.folder, self.keep)
        if self.verbose:
            print(f"Saved {path}")


# It reads the policy between the rollouts only.
KNOWN.add(TrainingCheckpoint)


def end_update(callback: BaseCallback) -> bool:
    """
    Call every :class:`TrainingCheckpoint` among a callback and those that it calls.

    :return: False if one of them ends the training
    """
    go_on = [one.on_update_end(callback) for one in family(callback) if isinstance(one, TrainingCheckpoint)]
    return all(go_on)
