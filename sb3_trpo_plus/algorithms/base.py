"""The base class of this package's algorithms: an update improves the policy, then fits the critic."""

import copy
import io
import math
import pathlib
import warnings
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.save_util import data_to_json
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TensorDict
from stable_baselines3.common.utils import explained_variance

from sb3_trpo_plus.algorithms.arguments import (
    AT_LEAST_0,
    COUNT,
    COUNT_OR_0,
    FLAG,
    FROM_0_TO_1,
    OF_SB3,
    POSITIVE,
    SCHEDULES,
    Range,
    check_for_sb3,
    check_learn,
    check_names,
    check_parameters,
    checked,
    constant,
    names_of,
    one_of,
    or_none,
    scheduled,
)
from sb3_trpo_plus.algorithms.resuming import Resumable
from sb3_trpo_plus.algorithms.skips import Skips
from sb3_trpo_plus.algorithms.threads import at_most_useful_threads, in_a_thread
from sb3_trpo_plus.critic.fit import critic_parameters, fit_critic
from sb3_trpo_plus.critic.outcome import CriticFit
from sb3_trpo_plus.critic.plain_fit import PlainFit
from sb3_trpo_plus.files.archive import find, name_of
from sb3_trpo_plus.files.atomic import path_to_write, write_whole
from sb3_trpo_plus.files.errors import ModelFileError
from sb3_trpo_plus.files.models import named, read_model, read_parameters
from sb3_trpo_plus.files.own import note_saved
from sb3_trpo_plus.files.rebuild import OPTIMISER_CLASSES
from sb3_trpo_plus.files.weights import check_optimiser, without_overshoot
from sb3_trpo_plus.policies.actor import hold_actor, refresh_running_statistics
from sb3_trpo_plus.policies.distributions import distribution_put_back
from sb3_trpo_plus.policies.observations import every
from sb3_trpo_plus.rollouts.checks import Guard, NotFiniteError, ObservationNotFiniteError, first_not_finite
from sb3_trpo_plus.rollouts.failures import raise_naming
from sb3_trpo_plus.rollouts.sample import Sample, normalized

# A cause of a skipped policy update: suffix of its log key, and words for the warning.
EQUAL_ADVANTAGES = ("equal_advantages", "all advantages of the rollout are equal")
SelfKLControlled = TypeVar("SelfKLControlled", bound="KLControlled")


class KLControlled(Resumable):
    """
    An abstract on-policy actor-critic whose policy updates control KL(old || new).

    A subclass implements ``_improve_policy``, and may override ``_sample`` and ``_surrogate``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }
    #: Attribute by which saved files of this algorithm are recognised, a key of ``files.models.TOLD_BY``
    _told_by: ClassVar[str]
    #: Of the arguments that are no schedules, by the names of their attributes
    _ranges: ClassVar[dict[str, Range]] = {
        **OF_SB3,
        "n_steps": COUNT,
        "gae_lambda": FROM_0_TO_1,
        "batch_size": COUNT,
        "sub_sampling_factor": COUNT,
        "n_critic_updates": COUNT_OR_0,
        "normalize_advantage": FLAG,
        "on_nonfinite": or_none(one_of("raise", "skip")),
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        *,
        batch_size: int,
        gamma: float | Schedule,
        n_critic_updates: int,
        normalize_advantage: bool,
        target_kl: float | Schedule,
        ent_coef: float | Schedule,
        sub_sampling_factor: int,
        max_grad_norm: float = 0.0,
        on_nonfinite: str | None,
        _init_setup_model: bool,
        **kwargs: Any,
    ):
        check_for_sb3(policy, env, kwargs["verbose"], kwargs["device"])
        super().__init__(
            policy,
            env,
            gamma=gamma,  # type: ignore[arg-type]  # SB3's is a float, and so is the buffer's once a rollout begins
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=max_grad_norm,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
            **kwargs,
        )
        self.batch_size = batch_size
        self.n_critic_updates = n_critic_updates
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.ent_coef = ent_coef  # type: ignore[assignment]  # SB3's is a float
        self.sub_sampling_factor = sub_sampling_factor
        self.on_nonfinite = on_nonfinite
        self._skips = Skips()

    def _setup_model(self) -> None:
        self._check_hyperparameters()
        super()._setup_model()

    @property
    def kl_limit(self) -> float:
        """
        ``target_kl`` at the present progress of the training, in nats.

        :raises ValueError: its schedule returns a number that is not finite, or below 0
        """
        return self._at_present("target_kl")

    def _at_present(self, name: str) -> float:
        """
        The value, at the present progress of the training, of an argument that may be a schedule.

        :param name: of the argument, a key of ``SCHEDULES``
        :raises ValueError: the value is out of its range, or not finite
        """
        return scheduled(name, getattr(self, name), self._current_progress_remaining, SCHEDULES[name])

    def _present_gamma(self) -> float:
        """``gamma`` at the present progress of the training; raises ValueError if its schedule leaves [0, 1]."""
        return self._at_present("gamma")

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        guard = Guard(self.env) if self.env is not None else None
        try:
            prepared = super()._setup_learn(*args, **kwargs)
        except Exception as error:
            if self.env is None:
                raise
            raise_naming(error, self.env, "in a reset")
        if guard is not None:
            try:
                guard.look_at_reset()
            except ObservationNotFiniteError:
                self._last_obs = None
                raise
        # SB3 does this only after the first rollout, for which schedules would use the progress of an earlier learn().
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps or 1)
        return prepared

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        """As in SB3; raises ValueError if the schedule gives a rate that no optimiser can use, and leaves the former one."""
        all_of_them = optimizers if isinstance(optimizers, list) else [optimizers]
        groups = [group for optimizer in all_of_them for group in optimizer.param_groups]
        former = [group["lr"] for group in groups]
        super()._update_learning_rate(optimizers)
        name = f"learning_rate at progress_remaining={self._current_progress_remaining:.3g}"
        try:
            for group in groups:
                checked(name, group["lr"], AT_LEAST_0)
        except ValueError:
            for group, rate in zip(groups, former, strict=True):
                group["lr"] = rate
            raise

    def train(self) -> None:
        """
        Improve the policy on the rollout, then fit the critic to its returns.

        Where numbers are not finite, the policy or the critic is left unchanged, with a warning that names the cause.

        :raises NotFiniteError: the rollout's are not, and ``on_nonfinite="raise"``
        """
        self._skips.begin_update()
        # A rollout may overshoot total_timesteps, VineTRPO's by far; schedules are not defined below 0.
        self._current_progress_remaining = max(0.0, self._current_progress_remaining)
        self.logger.record("train/target_kl", self.kl_limit)
        self.logger.record("train/ent_coef", self._at_present("ent_coef"))
        self.logger.record("train/gamma", self.rollout_buffer.gamma)
        self._update_learning_rate(self.policy.optimizer)
        broken = self._first_not_finite()
        found = [f"the rollout's {broken} are not all finite"] if broken else []
        found += [self._not_finite] if self._not_finite else []
        if found:
            if self.on_nonfinite == "raise":
                raise NotFiniteError(f"Nothing was changed by this update: {'. '.join(found)}")
            self._skip("rollout_not_finite", f"This update was skipped, nothing was changed: {'. '.join(found)}")
            return

        with distribution_put_back(self.policy):
            with at_most_useful_threads(self._multiplications(self._samples_per_pass)):
                actor_parameters = self._improve_policy()
            if hasattr(self.policy, "log_std"):
                self.logger.record("train/std", self.policy.log_std.exp().mean().item())
            with at_most_useful_threads(self._multiplications(self.batch_size)):
                self._fit_critic(actor_parameters)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self._log_skips()

    def _improve_policy(self) -> list[th.nn.Parameter]:
        """
        Update the policy on the rollout.

        :return: the actor's parameters, also if the update was skipped
        """
        raise NotImplementedError

    def _first_not_finite(self) -> str | None:
        """Name, for messages, of the first part of the rollout with NaN or infinite elements; None if there is none."""
        return first_not_finite(self.rollout_buffer)

    @property
    def _fits_critic(self) -> bool:
        return True

    @property
    def _samples_per_pass(self) -> int:
        """Batch size of a forward pass in the policy update, from which the number of threads follows."""
        return self.n_steps * self.n_envs // self.sub_sampling_factor

    def _multiplications(self, n_samples: int) -> int:
        """Of one pass of the actor or the critic."""
        return n_samples * sum(parameter.numel() for parameter in self.policy.parameters()) // 2

    def _skip(self, cause: str, sentence: str) -> None:
        """
        Count a skipped update, warn, and log the count so far as ``train/skipped_CAUSE``.

        :param cause: one word, the suffix of the log key
        :param sentence: what was skipped, and why
        """
        self._skips.add(cause, sentence)
        self._log_skips()

    def _skip_policy(self, cause: str, reason: str) -> None:
        """As :meth:`_skip`, for an update in which the policy is left as it was but the critic is fitted."""
        self._skip(cause, f"This policy update was skipped, the policy stays as it was: {reason}")

    def dump_logs(self, iteration: int = 0) -> None:
        """As in SB3, with what the critic's fit has to say."""
        self._settle_critic()
        super().dump_logs(iteration)

    def _log_skips(self) -> None:
        for cause, count in self._skips.counts.items():
            self.logger.record(f"train/skipped_{cause}", count)

    def _sample(self) -> Sample:
        """The samples of the rollout that the policy update uses: every ``sub_sampling_factor``-th."""
        rollout = next(self.rollout_buffer.get(batch_size=None))
        k = self.sub_sampling_factor
        actions, raw_advantages = rollout.actions[::k], rollout.advantages[::k]
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        advantages = normalized(raw_advantages, self.normalize_advantage)
        observations = every(rollout.observations, k)
        return Sample(observations, actions, rollout.old_log_prob[::k], advantages, raw_advantages)

    def _surrogate(self, distribution: Distribution, sample: Sample) -> th.Tensor:
        """L(theta) = E[ pi_theta(a|s) / pi_old(a|s) * A(s,a) ] + ent_coef * E[ entropy of pi_theta(.|s) ]"""
        objective = sample.expected_advantage(distribution, sample.advantages)
        weight = self._at_present("ent_coef")
        if weight > 0:
            objective = objective + weight * sample.entropy(distribution)
        return objective

    def _fit_critic(self, actor_parameters: list[th.nn.Parameter]) -> None:
        self.policy.set_training_mode(True)
        actor_modules = refresh_running_statistics(self.policy, self.rollout_buffer)
        if not self._fits_critic:
            return
        explained = explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten())
        self.logger.record("train/explained_variance", explained)
        if self._may_fit_beside and self._start_fit_beside(actor_parameters):
            return
        hold_actor(self.policy, actor_parameters, actor_modules)
        fit = fit_critic(self.policy, self.rollout_buffer, actor_parameters, self.n_critic_updates, self.batch_size)
        self.policy.set_training_mode(True)
        self._tell_of_fit(fit)

    def _start_fit_beside(self, actor_parameters: list[th.nn.Parameter]) -> bool:
        """Start the critic's fit in a thread; False if it is none that can be left alone."""
        policy = self.policy
        if policy.device.type != "cpu":
            return False
        critic = critic_parameters(policy, actor_parameters)
        fit = PlainFit.of(policy, self.rollout_buffer, critic, self.n_critic_updates, self.batch_size)
        if fit is None:
            return False
        wait = in_a_thread(fit.run, self._multiplications(self.batch_size))

        def outcome() -> CriticFit:
            wait()
            return fit.write_back()

        self._fit_beside_rollout(outcome)
        return True

    def _tell_of_fit(self, fit: CriticFit) -> None:
        if fit.stopped is not None:
            self._skip("critic_fit", f"The critic's fit stopped early: {fit.stopped}")
        if fit.loss is not None:
            self.logger.record("train/value_loss", fit.loss)

    def _check_hyperparameters(self) -> None:
        """
        :raises ValueError: an argument is out of its range
        :raises AssertionError: the rollout is too short to normalise its advantages
        """
        if not hasattr(self, "observation_space"):
            raise ValueError("env must be the id of a registered environment, an environment or a VecEnv, but it is None")
        for name, allowed in self._ranges.items():
            argument = "policy" if name == "policy_class" else name.removeprefix("_")
            setattr(self, name, checked(argument, getattr(self, name), allowed))
        # In a file, the progress may be that of a rollout that overshot.
        remaining = max(0.0, self._current_progress_remaining)
        for name, allowed in {**SCHEDULES, "learning_rate": AT_LEAST_0}.items():
            value = getattr(self, name)
            if callable(value):
                scheduled(name, value, remaining, allowed)
            else:
                setattr(self, name, constant(name, value, POSITIVE if name == "target_kl" else allowed))

        rollout_size = self.n_steps * self.n_envs
        samples = math.ceil(rollout_size / self.sub_sampling_factor)
        if self.normalize_advantage and samples < 2:
            # An AssertionError because that is what sb3-contrib and PPO raise here.
            raise AssertionError(
                f"normalize_advantage needs at least 2 samples in the policy update, but n_steps={self.n_steps} with "
                f"{self.n_envs} environments and sub_sampling_factor={self.sub_sampling_factor} gives {samples}: "
                "raise n_steps or set normalize_advantage=False"
            )
        if self._fits_critic and rollout_size % self.batch_size != 0:
            warnings.warn(
                f"batch_size={self.batch_size} does not divide n_steps * n_envs = {self.n_steps} * {self.n_envs}: "
                f"each pass of the critic's fit ends with a minibatch of {rollout_size % self.batch_size}"
            )

    def learn(
        self: SelfKLControlled,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfKLControlled:
        """
        Train until ``total_timesteps`` environment steps are done; arguments as in ``OnPolicyAlgorithm.learn``.

        :param tb_log_name: ``None``: the name of the class
        :return: the trained model
        :raises ValueError: an argument is out of its range
        :raises TypeError: ``callback`` is none
        """
        arguments = check_learn(
            callback,
            total_timesteps=total_timesteps,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
        arguments["tb_log_name"] = tb_log_name or type(self).__name__
        return super().learn(callback=callback, **arguments)

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        As ``BaseAlgorithm.set_parameters``, but where it fails nothing is changed.

        :param load_path_or_dict: a saved model, or a dict as ``get_parameters`` gives it
        :param exact_match: whether all parameters must be there
        :param device: of the parameters
        :raises ValueError: a name is unknown or missing, or a number is not finite
        """
        parameters = load_path_or_dict
        whose: AbstractContextManager[None] = nullcontext()
        if not isinstance(parameters, dict):
            path = find(parameters)
            parameters, whose = read_parameters(path, type(self)), named(path)
        check_parameters(parameters)
        optimiser = self.policy.optimizer
        state: Any = parameters.get("policy.optimizer")
        if isinstance(state, dict):
            state = without_overshoot(state)
            parameters = {**parameters, "policy.optimizer": state}
        # Where a part is missing, SB3 says so.
        has_state = isinstance(state, dict) and {"state", "param_groups"} <= state.keys()
        if has_state and type(optimiser) in OPTIMISER_CLASSES and len(optimiser.param_groups) == 1:
            shapes = [tuple(parameter.shape) for parameter in optimiser.param_groups[0]["params"]]
            with whose:
                check_optimiser(state, optimiser, shapes)
        before: Any = copy.deepcopy(self.get_parameters())
        try:
            super().set_parameters(parameters, exact_match, device)
        except Exception:
            super().set_parameters(before, True, device)
            raise

    @classmethod
    def load(
        cls: type[SelfKLControlled],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        safe_globals: Collection[Any] = (),
        trust: bool = False,
        **kwargs: Any,
    ) -> SelfKLControlled:
        """
        Load a model that this class saved; ``TRPO`` reads those of ``sb3_contrib.TRPO`` too, the Gym years' (2021) included.

        The file is read as data: nothing that it has is run. Arguments as in ``BaseAlgorithm.load``, and two for what is not
        data.

        :param safe_globals: classes and functions of yours that the file may name, make and call: a policy, a features
            extractor, a schedule. The file decides what they are called with. Where it says ``__main__``, the name is enough;
            files that this very process has saved need none
        :param trust: whether to unpickle whatever the file has, as SB3 does, which may run any code
        :return: a new model
        :raises TypeError: ``safe_globals`` is no list of classes and functions, or ``trust`` no truth value
        :raises FileNotFoundError: there is no such file
        :raises UnsafeFileError: the file has something that is not data, or needs code that is not listed
        :raises ModelFileError: the file is damaged, was saved by another algorithm, or has values of the wrong kind
        """
        path = find(path)
        # SB3 compares given policy_kwargs with the stored ones, which must therefore be read in any case.
        replaced = {name: value for name, value in kwargs.items() if name != "policy_kwargs"} | (custom_objects or {})
        saved = read_model(path, cls, cls._told_by, replaced, safe_globals, trust)
        check_names(kwargs, names_of(cls) | saved.names, f"{cls.__name__}.load()")
        try:
            return super().load(saved.archive, env, device, saved.objects, print_system_info, force_reset, **kwargs)
        except Exception as error:
            if env is not None or kwargs or custom_objects or safe_globals or trust:
                raise
            raise ModelFileError(f"{name_of(path)} makes no {cls.__name__}: {error}") from error

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model; arguments as in ``BaseAlgorithm.save``.

        A file that is there already is replaced as a whole, once the new one is complete. A stream is written to as SB3 does.

        :raises TypeError: an attribute can't be saved; nothing was written
        :raises OSError: the file can't be written; it is as it was before
        """
        self._settle_critic()
        exclude, include = list(exclude or ()), list(include or ())
        stream = io.BytesIO() if isinstance(path, (str, pathlib.Path)) else path
        start = stream.tell() if isinstance(stream, io.BytesIO) else 0
        try:
            super().save(stream, exclude, include)
        except Exception as error:
            if isinstance(error, OSError) or (name := self._unsaveable(exclude, include)) is None:
                raise
            raise TypeError(
                f"{type(self).__name__}.save: the attribute {name}, a {type(getattr(self, name)).__name__}, can't be saved "
                f"({error}). Leave it out, with save(..., exclude=[{name!r}]), or remove it from the model"
            ) from error
        if isinstance(stream, io.BytesIO):
            note_saved(stream.getvalue()[start : stream.tell()])
        if isinstance(path, (str, pathlib.Path)) and isinstance(stream, io.BytesIO):
            write_whole(path_to_write(path, "zip"), stream.getbuffer())

    def _unsaveable(self, exclude: list[str], include: list[str]) -> str | None:
        """The first attribute that ``save`` would write and can't; None if it is none of them."""
        apart = {name.split(".")[0] for names in self._get_torch_save_params() for name in names}
        left_out = (set(exclude) | set(self._excluded_save_params())) - set(include) | apart
        for name, value in vars(self).items():
            try:
                data_to_json({} if name in left_out else {name: value})
            except Exception:
                return name
        return None

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_skips"]
