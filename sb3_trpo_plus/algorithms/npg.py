"""The natural policy gradient."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trpo_plus.algorithms.arguments import AT_LEAST_0, COUNT, FLAG, POSITIVE, Range, one_of, or_none
from sb3_trpo_plus.algorithms.base import EQUAL_ADVANTAGES, KLControlled
from sb3_trpo_plus.policies.actor import actor_gradient
from sb3_trpo_plus.policies.distributions import (
    NotADistributionError,
    action_distribution,
    averaged_dimensions,
    kl_divergence,
)
from sb3_trpo_plus.policies.fisher import empirical_fisher_vector_product, fisher_vector_product
from sb3_trpo_plus.rollouts.sample import RandomState, Sample, random_state
from sb3_trpo_plus.trust_region.fisher import FisherVectorProduct
from sb3_trpo_plus.trust_region.line_search import Candidate
from sb3_trpo_plus.trust_region.step import StepReport, StepSettings, natural_gradient_step

# A share of s'As, from which on the damping decides the length of a step.
MOSTLY = 0.9
# A standard deviation near the rounding of the means, where no step is so small that the KL keeps its limit.
SMALLEST_STD = 1e-5
SMALL_STD = ", whose standard deviation is so small that rounding alone changes it by more than target_kl: raise log_std_init"


class NPG(KLControlled):
    """
    Natural Policy Gradient (NPG): a step along (F + damping I)^-1 g, without a line search.

    The step is the largest that the quadratic model of the mean KL allows, so the true KL may exceed ``target_kl``; or, as in
    Kakade's paper, it has a fixed size. If the policy after it is not finite, the parameters are restored.

    Papers: Kakade, "A natural policy gradient", 2001; Schulman et al., https://arxiv.org/abs/1502.05477, section 7

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class)
    :param env: The environment to learn from (an id that is registered in Gymnasium, an env or a VecEnv)
    :param learning_rate: Learning rate of the critic; a float or a function of the remaining progress (from 1 to 0)
    :param n_steps: Steps of each environment in a rollout, which has n_steps * n_envs samples: at least 2 of them take part
        in the policy update if ``normalize_advantage``
    :param batch_size: Minibatch size of the critic's fit
    :param gamma: Discount factor, in [0, 1]; or a function of the remaining progress (from 1 to 0)
    :param cg_max_steps: Limit on the iterations of conjugate gradients, at least 1
    :param cg_damping: Added to the diagonal of the Fisher matrix, at least 0
    :param n_critic_updates: Passes of the critic's fit over the rollout, at least 0
    :param gae_lambda: Trade-off of bias against variance in generalised advantage estimation, in [0, 1]
    :param use_sde: Whether to use generalised State-Dependent Exploration (gSDE) instead of independent action noise
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE; -1: only at the start of a rollout
    :param rollout_buffer_class: Rollout buffer class. ``None``: chosen by the observation space
    :param rollout_buffer_kwargs: Keyword arguments of the rollout buffer
    :param normalize_advantage: Whether to give the advantages of a rollout mean 0 and standard deviation 1
    :param target_kl: The mean KL(old || new) of a step by its quadratic model, in nats, positive. For Box and MultiBinary
        actions the mean over the action's dimensions, as in :class:`~sb3_trpo_plus.TRPO`. Or a function of the remaining
        progress (from 1 to 0), which may go down to 0, where the policy stays as it is
    :param sub_sampling_factor: The whole policy update uses every k-th sample, k at least 1
    :param stats_window_size: Episodes that the logged success rate, episode length and reward are averaged over
    :param tensorboard_log: Folder of the TensorBoard logs; ``None``: no such logs
    :param policy_kwargs: Additional arguments of the policy
    :param verbose: 0: no output, 1: info messages, 2: debug messages
    :param seed: Seed of the pseudo-random generators
    :param device: Device of the networks (cpu, cuda, ...); auto: the GPU if there is one
    :param _init_setup_model: Whether to build the networks when the instance is created
    :param step_size: Factor of the natural gradient in a step, positive; ``None``: sqrt(2 target_kl / s'(F + damping I)s)
    :param fisher_sub_sampling_factor: The Fisher matrix alone is estimated on every k-th of the samples that the policy update
        uses (Schulman's thesis, p. 40), k at least 1; the gradient sees all of them
    :param cg_residual_tol: Relative residual ||g - (F + damping I) s|| / ||g|| at which conjugate gradients stop, at least 0
    :param ent_coef: Weight of the mean entropy in the surrogate objective, at least 0; or a function of the remaining progress
    :param fisher: "gauss_newton": F = E[J'MJ], which needs no actions; "empirical": F = E[grad log pi grad log pi'] over the
        actions taken
    :param log_improvement_bound: Whether to log ``train/improvement_lower_bound``: L - C max KL, equation 9 of the TRPO paper,
        with the rollout's estimates; needs gamma < 1
    :param on_nonfinite: What becomes of a rollout in which the environment gave a number that is NaN or infinite, which in no
        case reaches the parameters, the statistics of a ``VecNormalize`` or, as an action, the environment. "raise": an error
        that names the environment, the step and the number; "skip": a warning that does, and no update, for an observation
        after a reset of all environments; ``None``: "raise" for an observation and "skip" for a reward
    :raises ValueError: an argument is out of its range
    :raises AssertionError: the action space is not supported, or a rollout is too short (as in SB3)
    """

    _told_by = "step_size"
    _ranges: ClassVar[dict[str, Range]] = {
        **KLControlled._ranges,
        "cg_damping": AT_LEAST_0,
        "cg_residual_tol": AT_LEAST_0,
        "cg_max_steps": COUNT,
        "fisher_sub_sampling_factor": COUNT,
        "fisher": one_of("gauss_newton", "empirical"),
        "step_size": or_none(POSITIVE),
        "log_improvement_bound": FLAG,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 128,
        gamma: float | Schedule = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float | Schedule = 0.01,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        step_size: float | None = None,
        fisher_sub_sampling_factor: int = 1,
        cg_residual_tol: float = 1e-5,
        ent_coef: float | Schedule = 0.0,
        fisher: str = "gauss_newton",
        log_improvement_bound: bool = False,
        on_nonfinite: str | None = None,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            gamma=gamma,
            gae_lambda=gae_lambda,
            n_critic_updates=n_critic_updates,
            normalize_advantage=normalize_advantage,
            target_kl=target_kl,
            sub_sampling_factor=sub_sampling_factor,
            ent_coef=ent_coef,
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
            on_nonfinite=on_nonfinite,
            _init_setup_model=False,
        )
        self.step_size = step_size
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.cg_residual_tol = cg_residual_tol
        self.fisher_sub_sampling_factor = fisher_sub_sampling_factor
        self.fisher = fisher
        self.log_improvement_bound = log_improvement_bound
        # Report of the last policy update, and the random state that its sample was drawn with, for plot_trust_region.
        self.last_step: StepReport | None = None
        self._drawn_from: RandomState | None = None
        if _init_setup_model:
            self._setup_model()

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """As ``OnPolicyAlgorithm.collect_rollouts``."""
        # The last update's sample can't be drawn again once its rollout is overwritten.
        self._drawn_from = None
        return super().collect_rollouts(*args, **kwargs)

    def train(self) -> None:
        """
        Take one natural-gradient step on the rollout, then fit the critic to its returns.

        Where numbers are not finite, the policy or the critic is left unchanged, with a warning that names the cause.
        """
        self.last_step = self._drawn_from = None
        super().train()

    def _improve_policy(self) -> list[th.nn.Parameter]:
        """
        Take one step on the rollout.

        :return: the actor's parameters, also if the step was not taken
        """
        # Evaluation mode, since the policy that collected the data had no dropout either.
        self.policy.set_training_mode(False)
        self._drawn_from = random_state()
        sample = self._sample()
        old = action_distribution(self.policy, sample.observations)
        surrogate_old = self._surrogate(old, sample)
        actor_parameters, gradient = actor_gradient(self.policy, surrogate_old)
        fisher = self._fisher_vector_product(sample, actor_parameters)
        evaluate = partial(self._candidate, sample, old)
        report = self._step(sample, actor_parameters, gradient, fisher, evaluate, surrogate_old.item())
        self.last_step = report
        if not report.tried:
            self._skip_policy(*(("no_direction", report.reason) if sample.advantages.any() else EQUAL_ADVANTAGES))
        self._log_step(report)
        self._tell_of_stalls(report)
        self.logger.record("train/entropy", sample.entropy(old).item())
        if self.log_improvement_bound:
            self.logger.record("train/improvement_lower_bound", self._improvement_lower_bound(sample, old, report))
        return actor_parameters

    def _sample_of_last_step(self) -> Sample:
        """
        Draw the sample of the last update again, which is not kept, as it takes as much memory as the rollout.

        :raises ValueError: its rollout has been overwritten
        """
        if self._drawn_from is None:
            raise ValueError(
                "The rollout of the last policy update is gone: draw it when learn() has returned, before the next one"
            )
        now = random_state()
        np.random.set_state(self._drawn_from)  # noqa: NPY002
        try:
            return self._sample()
        finally:
            np.random.set_state(now)  # noqa: NPY002

    def _fisher_vector_product(self, sample: Sample, actor_parameters: list[th.nn.Parameter]) -> FisherVectorProduct:
        part = sample.at(slice(None, None, self.fisher_sub_sampling_factor))
        if self.fisher == "empirical":
            return empirical_fisher_vector_product(self.policy, part.observations, part.actions, actor_parameters)
        return fisher_vector_product(self.policy, part.observations, actor_parameters)

    @th.no_grad()
    def _candidate(self, sample: Sample, old: Distribution) -> Candidate:
        """Surrogate and KL(old || new) at the present values of the parameters; NaN if they give no distribution."""
        try:
            new = action_distribution(self.policy, sample.observations)
        except NotADistributionError:
            # After a too large step the outputs may overflow.
            return Candidate(math.nan, math.nan, math.nan)
        kl = kl_divergence(old, new)
        return Candidate(self._surrogate(new, sample).item(), kl.mean().item(), kl.max().item())

    def _step(
        self,
        sample: Sample,
        actor_parameters: list[th.nn.Parameter],
        gradient: th.Tensor,
        fisher: FisherVectorProduct,
        evaluate: Callable[[], Candidate],
        surrogate_old: float,
    ) -> StepReport:
        return natural_gradient_step(actor_parameters, gradient, fisher, evaluate, surrogate_old, settings=self._settings())

    def _settings(self) -> StepSettings:
        """Settings of the next step, at the present progress of the training."""
        return StepSettings(
            max_kl=self.kl_limit,
            damping=self.cg_damping,
            cg_max_steps=self.cg_max_steps,
            cg_residual_tol=self.cg_residual_tol,
            step_size=self.step_size,
        )

    @th.no_grad()
    def _improvement_lower_bound(self, sample: Sample, old: Distribution, report: StepReport) -> float:
        """L(new) - L(old) - C max KL, with maxima over the rollout in place of those over all states and actions."""
        gamma = self.rollout_buffer.gamma
        if gamma == 1:
            return -math.inf
        new = action_distribution(self.policy, sample.observations)
        gain, before = (sample.expected_advantage(one, sample.raw_advantages).item() for one in (new, old))
        epsilon = sample.raw_advantages.abs().max().item()
        max_kl = averaged_dimensions(old) * report.max_kl
        # The paper sums over discounted visits, whose weights add up to 1 / (1 - gamma); here L is a mean.
        return (gain - before) / (1 - gamma) - 4 * epsilon * gamma / (1 - gamma) ** 2 * max_kl

    def _log_step(self, report: StepReport) -> None:
        self.logger.record("train/policy_objective", report.surrogate_new)
        self.logger.record("train/step_size", report.step_size)
        self.logger.record("train/expected_improvement", report.expected_improvement)
        self.logger.record("train/improvement_ratio", report.improvement_ratio)
        self.logger.record("train/kl_mean", report.mean_kl)
        self.logger.record("train/kl_max", report.max_kl)
        self.logger.record("train/kl_used", self._kl_used(report))
        self.logger.record("train/damping_share", report.damping_share)
        self.logger.record("train/cg_iterations", report.cg_iterations)
        self.logger.record("train/cg_residual", report.cg_relative_residual)
        self.logger.record("train/gradient_norm", report.gradient_norm)
        if report.tried and not report.accepted:
            self._log_refusal(report)

    def _kl_used(self, report: StepReport) -> float:
        """The step's KL as a share of its limit."""
        return report.mean_kl / self.kl_limit if self.kl_limit > 0 else 0.0

    def _tell_of_stalls(self, report: StepReport) -> None:
        """Warn where updates, one after the other, take no step, or much shorter ones than ``target_kl`` allows."""
        log_std = getattr(self.policy, "log_std", None)
        has_small_std = log_std is not None and bool(log_std.detach().exp().mean() < SMALLEST_STD)
        self._skips.goes_on(
            "no_step",
            bool(report.tried) and not report.accepted and self.kl_limit > 0,
            f"No step was taken: {report.reason}. The policy stays as it was{SMALL_STD if has_small_std else ''}",
        )
        used = self._kl_used(report)
        self._skips.goes_on(
            "damped",
            report.accepted and report.damping_share > MOSTLY and used < 1 - MOSTLY,
            f"A step used {used:.1%} of target_kl, because {report.damping_share:.1%} of s'(F + damping I)s is damping: with "
            f"a lower cg_damping than {self.cg_damping:g} steps are longer, which need not be better (docs/trust_region.md)",
        )

    def _log_refusal(self, report: StepReport) -> None:
        """Count and warn of a step that was tried and not accepted."""
        self._skip_policy("policy_not_finite", report.reason)

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        if self.log_improvement_bound and self.gamma == 1:
            raise ValueError(
                f"log_improvement_bound needs gamma below 1, but it is {self.gamma!r}: the bound has (1 - gamma) as a divisor"
            )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "last_step", "_drawn_from"]
