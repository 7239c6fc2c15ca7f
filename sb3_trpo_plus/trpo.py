"""Trust Region Policy Optimization."""

import io
import math
import pathlib
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance

from sb3_trpo_plus import policy_model, saving
from sb3_trpo_plus.critic import fit_critic
from sb3_trpo_plus.rollouts import FastRollouts
from sb3_trpo_plus.threads import at_most_useful_threads
from sb3_trpo_plus.trust_region.line_search import Candidate
from sb3_trpo_plus.trust_region.step import StepReport, trust_region_step

SelfTRPO = TypeVar("SelfTRPO", bound="TRPO")


class TRPO(FastRollouts):
    """
    Trust Region Policy Optimization (TRPO), the single-path procedure with generalised advantage estimation.

    Papers: https://arxiv.org/abs/1502.05477 (TRPO), https://arxiv.org/abs/1506.02438 (GAE)

    Arguments up to ``_init_setup_model`` have the names, the order, the defaults and the meaning that they have in
    ``sb3_contrib.TRPO``; those after it are new, and by keyword only.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class)
    :param env: The environment to learn from (an id that is registered in Gymnasium, an env or a VecEnv)
    :param learning_rate: Learning rate of the critic; a float or a function of the remaining progress (from 1 to 0)
    :param n_steps: Steps of each environment in a rollout, which has n_steps * n_envs samples: at least 2 of them take part
        in the policy update if ``normalize_advantage``
    :param batch_size: Minibatch size of the critic's fit
    :param gamma: Discount factor, in [0, 1]
    :param cg_max_steps: Limit on the iterations of conjugate gradients, at least 1
    :param cg_damping: Added to the diagonal of the Fisher matrix, at least 0
    :param line_search_shrinking_factor: Factor of the step at each backtrack, in (0, 1)
    :param line_search_max_iter: Steps tried before the update is given up, at least 1
    :param n_critic_updates: Passes of the critic's fit over the rollout, at least 0
    :param gae_lambda: Trade-off of bias against variance in generalised advantage estimation, in [0, 1]
    :param use_sde: Whether to use generalised State-Dependent Exploration (gSDE) instead of independent action noise
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE; -1: only at the start of a rollout
    :param rollout_buffer_class: Rollout buffer class. ``None``: chosen by the observation space
    :param rollout_buffer_kwargs: Keyword arguments of the rollout buffer
    :param normalize_advantage: Whether to give the advantages of a rollout mean 0 and standard deviation 1
    :param target_kl: Limit on the mean KL(old || new) of an update, in nats, positive. For Box and MultiBinary actions this is
        the mean over the action's dimensions, as in sb3-contrib: the joint KL is that times their number
    :param sub_sampling_factor: The whole policy update uses every k-th sample, k at least 1
    :param stats_window_size: Episodes that the logged success rate, episode length and reward are averaged over
    :param tensorboard_log: Folder of the TensorBoard logs; ``None``: no such logs
    :param policy_kwargs: Additional arguments of the policy
    :param verbose: 0: no output, 1: info messages, 2: debug messages
    :param seed: Seed of the pseudo-random generators
    :param device: Device of the networks (cpu, cuda, ...); auto: the GPU if there is one
    :param _init_setup_model: Whether to build the networks when the instance is created
    :param fisher_sub_sampling_factor: The Fisher matrix alone is estimated on every k-th of the samples that the policy update
        uses (Schulman's thesis, p. 40), k at least 1; the gradient and the line search see all of them
    :param cg_residual_tol: Relative residual ||g - (F + damping I) s|| / ||g|| at which conjugate gradients stop, at least 0
    :param ent_coef: Weight of the mean entropy in the surrogate objective, at least 0
    :raises ValueError: an argument is out of its range
    :raises AssertionError: the action space is not supported, or a rollout is too short (as in SB3)
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 128,
        gamma: float = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float = 0.01,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        fisher_sub_sampling_factor: int = 1,
        cg_residual_tol: float = 1e-5,
        ent_coef: float = 0.0,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=0.0,
            max_grad_norm=0.0,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        self.normalize_advantage = normalize_advantage
        self.batch_size = batch_size
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.cg_residual_tol = cg_residual_tol
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.target_kl = target_kl
        self.n_critic_updates = n_critic_updates
        self.sub_sampling_factor = sub_sampling_factor
        self.fisher_sub_sampling_factor = fisher_sub_sampling_factor

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._check_hyperparameters()
        super()._setup_model()

    def train(self) -> None:
        """
        Improve the policy on the rollout within the trust region, then fit the critic to its returns.

        Both are left as they are, with a warning that names the cause, where their numbers are not finite.
        """
        self._update_learning_rate(self.policy.optimizer)
        broken = policy_model.first_not_finite(self.rollout_buffer)
        if broken is not None:
            reason = f"the rollout's {broken} are not all finite"
            warnings.warn(f"This update was skipped, nothing was changed: {reason}")
            self.logger.record("train/is_line_search_success", 0.0)
            self.logger.record("train/line_search_outcome", reason, exclude="tensorboard")
            return

        n_parameters = sum(parameter.numel() for parameter in self.policy.parameters())
        with at_most_useful_threads(self.n_steps * self.n_envs // self.sub_sampling_factor * n_parameters // 2):
            actor_parameters = self._improve_policy()
        with at_most_useful_threads(self.batch_size * n_parameters // 2):
            self._fit_critic(actor_parameters)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _improve_policy(self) -> list[th.nn.Parameter]:
        """
        Take one trust-region step on the rollout.

        :return: the actor's parameters, moved or not
        """
        # The trust region is one around the policy that collected the data, which had no dropout.
        self.policy.set_training_mode(False)
        rollout = next(self.rollout_buffer.get(batch_size=None))
        k = self.sub_sampling_factor
        observations = policy_model.every(rollout.observations, k)
        actions, old_log_prob, advantages = rollout.actions[::k], rollout.old_log_prob[::k], rollout.advantages[::k]
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        spread = advantages.max() - advantages.min()
        advantages_equal = len(advantages) > 1 and bool(spread <= 1e-6 * advantages.abs().max())
        if advantages_equal:
            # Normalising them would turn rounding errors into advantages of size one.
            advantages = th.zeros_like(advantages)
        elif self.normalize_advantage:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)

        def surrogate(distribution: Distribution) -> th.Tensor:
            """L(theta) = E[ pi_theta(a|s) / pi_old(a|s) * A(s,a) ] + ent_coef * E[ entropy of pi_theta(.|s) ]"""
            log_prob = distribution.log_prob(actions)
            objective = (th.exp(log_prob - old_log_prob) * advantages).mean()
            if self.ent_coef != 0.0:
                objective = objective + self.ent_coef * policy_model.entropy(distribution, log_prob, old_log_prob)
            return objective

        old = policy_model.action_distribution(self.policy, observations)
        surrogate_old = surrogate(old)
        actor_parameters, gradient = policy_model.actor_gradient(self.policy, surrogate_old)
        fisher = policy_model.fisher_vector_product(
            self.policy, policy_model.every(observations, self.fisher_sub_sampling_factor), actor_parameters
        )

        @th.no_grad()
        def evaluate() -> Candidate:
            try:
                new = policy_model.action_distribution(self.policy, observations)
            except ValueError:
                # Too long a step can make outputs overflow, which torch's distributions refuse.
                return Candidate(math.nan, math.nan, math.nan)
            kl = policy_model.kl_divergence(old, new)
            return Candidate(surrogate(new).item(), kl.mean().item(), kl.max().item())

        report = trust_region_step(
            actor_parameters,
            gradient,
            fisher,
            evaluate,
            surrogate_old.item(),
            max_kl=self.target_kl,
            damping=self.cg_damping,
            cg_max_steps=self.cg_max_steps,
            cg_residual_tol=self.cg_residual_tol,
            shrinking_factor=self.line_search_shrinking_factor,
            max_tries=self.line_search_max_iter,
        )
        if report.line_search_steps == 0:
            cause = "all advantages of the rollout are equal" if advantages_equal else report.reason
            warnings.warn(f"This policy update was skipped, the policy stays as it was: {cause}")
        self._log_step(report)
        self.logger.record("train/entropy", policy_model.entropy(old, old_log_prob, old_log_prob).item())
        return actor_parameters

    def _fit_critic(self, actor_parameters: list[th.nn.Parameter]) -> None:
        self.policy.set_training_mode(True)
        policy_model.refresh_running_statistics(self.policy, self.rollout_buffer)
        policy_model.hold_actor(self.policy, actor_parameters)
        value_loss = fit_critic(self.policy, self.rollout_buffer, actor_parameters, self.n_critic_updates, self.batch_size)
        if value_loss is not None:
            self.logger.record("train/value_loss", value_loss)
        explained = explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten())
        self.logger.record("train/explained_variance", explained)

    def _log_step(self, report: StepReport) -> None:
        self.logger.record("train/policy_objective", report.surrogate_new)
        self.logger.record("train/kl_divergence_loss", report.mean_kl)
        self.logger.record("train/is_line_search_success", float(report.accepted))
        self.logger.record("train/line_search_outcome", report.reason, exclude="tensorboard")
        self.logger.record("train/line_search_steps", report.line_search_steps)
        self.logger.record("train/step_size", report.step_size)
        self.logger.record("train/expected_improvement", report.expected_improvement)
        self.logger.record("train/improvement_ratio", report.improvement_ratio)
        self.logger.record("train/kl_mean", report.mean_kl)
        self.logger.record("train/kl_max", report.max_kl)
        self.logger.record("train/cg_iterations", report.cg_iterations)
        self.logger.record("train/cg_residual", report.cg_relative_residual)
        self.logger.record("train/gradient_norm", report.gradient_norm)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())

    def _check_hyperparameters(self) -> None:
        """
        :raises ValueError: an argument is out of its range
        :raises AssertionError: the rollout is too short to normalise its advantages
        """
        positive, at_least_0, at_least_1 = (lambda x: x > 0), (lambda x: x >= 0), (lambda x: x >= 1)
        ranges: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
            "target_kl": (Real, positive, "a positive number"),
            "cg_damping": (Real, at_least_0, "a number of at least 0"),
            "cg_residual_tol": (Real, at_least_0, "a number of at least 0"),
            "ent_coef": (Real, at_least_0, "a number of at least 0"),
            "line_search_shrinking_factor": (Real, lambda x: 0 < x < 1, "a number between 0 and 1, both excluded"),
            "cg_max_steps": (Integral, at_least_1, "an integer of at least 1"),
            "line_search_max_iter": (Integral, at_least_1, "an integer of at least 1"),
            "n_steps": (Integral, at_least_1, "an integer of at least 1"),
            "batch_size": (Integral, at_least_1, "an integer of at least 1"),
            "sub_sampling_factor": (Integral, at_least_1, "an integer of at least 1"),
            "fisher_sub_sampling_factor": (Integral, at_least_1, "an integer of at least 1"),
            "n_critic_updates": (Integral, at_least_0, "an integer of at least 0"),
        }
        for name, (kind, in_range, allowed) in ranges.items():
            value = getattr(self, name)
            if not (isinstance(value, kind) and math.isfinite(value) and in_range(value)):
                raise ValueError(f"{name} must be {allowed}, but it is {value!r}")

        rollout_size = self.n_steps * self.n_envs
        samples = math.ceil(rollout_size / self.sub_sampling_factor)
        if self.normalize_advantage and samples < 2:
            # An AssertionError because that is what sb3-contrib and PPO raise here.
            raise AssertionError(
                f"normalize_advantage needs at least 2 samples in the policy update, but n_steps={self.n_steps} with "
                f"{self.n_envs} environments and sub_sampling_factor={self.sub_sampling_factor} gives {samples}: "
                "raise n_steps or set normalize_advantage=False"
            )
        if rollout_size % self.batch_size != 0:
            warnings.warn(
                f"batch_size={self.batch_size} does not divide n_steps * n_envs = {self.n_steps} * {self.n_envs}: "
                f"each pass of the critic's fit ends with a minibatch of {rollout_size % self.batch_size}"
            )

    def learn(
        self: SelfTRPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "TRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfTRPO:
        """
        Train until ``total_timesteps`` environment steps are done; arguments as in ``OnPolicyAlgorithm.learn``.

        :return: the trained model
        """
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    @classmethod
    def load(
        cls: type[SelfTRPO],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfTRPO:
        """
        Load a model that this class or ``sb3_contrib.TRPO`` saved, files of the Gym years (2021) included.

        Arguments as in ``BaseAlgorithm.load``.

        :return: a new model
        :raises FileNotFoundError: there is no such file
        :raises ValueError: the file is damaged, was saved by another algorithm, or holds an object that can't be read
        """
        path = saving.find(path)
        # SB3 compares the stored policy_kwargs with those given, so the stored ones must be read all the same.
        replaced = {name: value for name, value in kwargs.items() if name != "policy_kwargs"} | (custom_objects or {})
        objects = saving.read_objects(path, cls.__name__, ("cg_max_steps", "line_search_max_iter"), replaced)
        return super().load(path, env, device, objects, print_system_info, force_reset, **kwargs)
