"""``learn`` that can be resumed, and what a loaded model must not do again."""

import io
import pathlib
import warnings
from os import PathLike
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common import on_policy_algorithm
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo_plus.algorithms.checkpoint import end_update
from sb3_trpo_plus.algorithms.progress import check_environments, difference, following, put_back, put_back_statistics
from sb3_trpo_plus.envs.vec_states import statistics_of
from sb3_trpo_plus.files.checkpoint import Checkpoint, newest_checkpoint
from sb3_trpo_plus.rollouts.beside import has_time_beside
from sb3_trpo_plus.rollouts.collection import FastRollouts

SelfResumable = TypeVar("SelfResumable", bound="Resumable")


class Resumable(FastRollouts):
    """An on-policy algorithm whose training can stop between any two iterations, and go on in another process."""

    # Set by resume(), and used up by the learn() that follows.
    _resumed_from: Checkpoint | None = None
    # Iterations of the present learn(), of its part before a resume too.
    _n_iterations = 0
    # Whether the observations that the policy was trained with were normalised by a VecNormalize.
    observations_normalized = False

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.num_timesteps > 0:
            # A loaded model: seeded as before, it would draw the noise of its first rollouts again.
            if self.seed is not None:
                set_random_seed(following(self.seed, self.num_timesteps), using_cuda=self.device.type == "cuda")
            self._warn_of_missing_statistics(self._vec_normalize_env)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        prepared = super()._setup_learn(*args, **kwargs)
        self.observations_normalized = self._vec_normalize_env is not None and self._vec_normalize_env.norm_obs
        return prepared

    def learn(
        self: SelfResumable,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "OnPolicyAlgorithm",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfResumable:
        """
        Train, as ``OnPolicyAlgorithm.learn``, with an end of the update that ``TrainingCheckpoint`` hears of.

        After :meth:`resume`, ``total_timesteps`` is that of the ``learn`` that was interrupted, of which the rest is done.
        """
        resumed = self._resumed_from
        if resumed is not None:
            # SB3 adds what was done before to the number of further steps.
            total_timesteps += resumed.progress["_num_timesteps_at_start"] - self.num_timesteps
            reset_num_timesteps = False
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        self._n_iterations = iteration = 0
        callback.on_training_start(locals(), vars(on_policy_algorithm))
        if resumed is not None:
            # After all else that may draw from a generator or step an environment.
            put_back(resumed, self, callback)
            self._resumed_from, iteration = None, self._n_iterations
        assert self.env is not None

        while self.num_timesteps < total_timesteps:
            if not self.collect_rollouts(self.env, callback, self.rollout_buffer, n_rollout_steps=self.n_steps):
                break
            iteration += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            if log_interval is not None and iteration % log_interval == 0:
                self.dump_logs(iteration)
            goes_on = self.num_timesteps < total_timesteps
            self._may_fit_beside = goes_on and has_time_beside(self.env, callback)
            try:
                self.train()
            finally:
                self._may_fit_beside = False
            self._n_iterations = iteration
            if not end_update(callback):
                break

        self._settle_critic()
        callback.on_training_end()
        return self

    @classmethod
    def resume(
        cls: type[SelfResumable],
        path: str | PathLike[str],
        env: GymEnv | str,
        device: th.device | str = "auto",
        **kwargs: Any,
    ) -> SelfResumable:
        """
        A model whose next ``learn`` goes on with a training that ``TrainingCheckpoint`` saved, as if it had never stopped.

        That ``learn`` takes the ``total_timesteps`` of the one that was interrupted, and does the rest of it. On the same
        machine, with the same versions and number of threads, the parameters are the same to the bit, if the environments'
        states could be saved; else these begin with a reset.

        The environments' states are pickles, which can run code, and the model is loaded with ``trust=True``: resume files of
        your own only.

        :param path: of a checkpoint, or of the folder, whose newest is taken, or of a run's folder with ``checkpoints`` in it
        :param env: made, wrapped and normalised as that of the training; a ``VecNormalize`` gets its statistics back. The id
            of a registered environment will do where that was given to the constructor
        :param device: where the model goes on
        :param kwargs: for ``load``
        :return: a new model
        :raises FileNotFoundError: there is no checkpoint
        :raises ValueError: the file is damaged, or of another algorithm or other environments
        """
        file = newest_checkpoint(pathlib.Path(path))
        checkpoint = Checkpoint.read(file)
        if checkpoint.progress["algorithm"] != cls.__name__:
            raise ValueError(f"{file} is of a {checkpoint.progress['algorithm']}, which {cls.__name__} can't resume")
        env = cls._wrap_env(maybe_make_env(env, verbose=0))
        check_environments(checkpoint, env)
        put_back_statistics(checkpoint, env)
        # As much as its environments.
        try:
            model = cls.load(io.BytesIO(checkpoint.model), env, device, **{"trust": True, **kwargs})
        except ValueError as error:
            if "spaces do not match" not in str(error):
                raise
            raise ValueError(f"{error}. {difference(checkpoint, env)}") from error
        model.num_timesteps = checkpoint.progress["num_timesteps"]
        model._resumed_from = checkpoint
        return model

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As ``BaseAlgorithm.set_env``, with a warning where the policy was trained with other observations."""
        super().set_env(env, force_reset)
        self._warn_of_missing_statistics(self._vec_normalize_env)

    def _warn_of_missing_statistics(self, normalizer: VecNormalize | None) -> None:
        if not self.observations_normalized or self.env is None:
            return
        if normalizer is None or not normalizer.norm_obs:
            found = "env does not normalise them"
        elif all(rms.count < 1 for name, rms in statistics_of(normalizer).items() if name != "ret_rms"):
            found = "the VecNormalize of env has no statistics yet"
        else:
            return
        warnings.warn(
            f"This {type(self).__name__} was trained with observations that a VecNormalize normalised, and {found}: wrap it "
            "by load_vec_normalize(path, env), with the file that VecNormalize.save wrote"
        )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_resumed_from"]
