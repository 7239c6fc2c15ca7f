"""Trust Region Policy Optimization: the natural policy gradient with a line search that enforces the trust region."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trpo_plus.algorithms.arguments import COUNT, FRACTION, Range, one_of
from sb3_trpo_plus.algorithms.npg import NPG
from sb3_trpo_plus.policies.fisher import kl_curvature
from sb3_trpo_plus.rollouts.sample import Sample
from sb3_trpo_plus.trust_region.fisher import FisherVectorProduct
from sb3_trpo_plus.trust_region.line_search import Candidate
from sb3_trpo_plus.trust_region.step import StepReport, StepSettings, trust_region_step

# Methods that a subclass of sb3_contrib.TRPO may override, and that are never called here.
METHODS_OF_CONTRIB = ("_compute_actor_grad", "hessian_vector_product")


class TRPO(NPG):
    """
    Trust Region Policy Optimization (TRPO), the single-path procedure with generalised advantage estimation.

    An update follows the paper's appendix C: the surrogate and its gradient g, the Fisher-vector product, the search direction
    s that solves (F + damping I) s = g, the largest step by the quadratic model of the KL, and backtracking by the true KL and
    the true surrogate. All but the last is :class:`~sb3_trpo_plus.NPG`'s.

    Papers: https://arxiv.org/abs/1502.05477 (TRPO), https://arxiv.org/abs/1506.02438 (GAE)

    Arguments up to ``_init_setup_model`` have the names, the order, the defaults and the meaning that they have in
    ``sb3_contrib.TRPO``; those after it are new, and by keyword only.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class)
    :param env: The environment to learn from (an id that is registered in Gymnasium, an env or a VecEnv)
    :param learning_rate: Learning rate of the critic; a float or a function of the remaining progress (from 1 to 0)
    :param n_steps: Steps of each environment in a rollout, which has n_steps * n_envs samples: at least 2 of them take part
        in the policy update if ``normalize_advantage``
    :param batch_size: Minibatch size of the critic's fit
    :param gamma: Discount factor, in [0, 1]; or a function of the remaining progress (from 1 to 0)
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
    :param target_kl: Limit on the KL(old || new) of an update, in nats, positive: on its mean over the rollout's states unless
        ``kl_constraint`` says otherwise. For Box and MultiBinary actions the KL is the mean over the action's dimensions, as
        in sb3-contrib: the joint KL is that times their number. Or a function of the remaining progress (from 1 to 0), which
        may go down to 0, where the policy stays as it is
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
    :param ent_coef: Weight of the mean entropy in the surrogate objective, at least 0; or a function of the remaining progress
    :param fisher: "gauss_newton": F = E[J'MJ], which needs no actions; "empirical": F = E[grad log pi grad log pi'] over the
        actions taken
    :param kl_constraint: "mean": ``target_kl`` limits the mean of the KL over the rollout's states; "max": its maximum over
        them, as in the theory
    :param log_improvement_bound: Whether to log ``train/improvement_lower_bound``: L - C max KL, equation 9 of the paper, with
        the rollout's estimates; needs gamma < 1
    :param on_nonfinite: What becomes of a rollout in which the environment gave a number that is NaN or infinite, which in no
        case reaches the parameters, the statistics of a ``VecNormalize`` or, as an action, the environment. "raise": an error
        that names the environment, the step and the number; "skip": a warning that does, and no update, for an observation
        after a reset of all environments; ``None``: "raise" for an observation and "skip" for a reward
    :raises ValueError: an argument is out of its range
    :raises AssertionError: the action space is not supported, or a rollout is too short (as in SB3)
    """

    _told_by = "line_search_max_iter"
    _ranges: ClassVar[dict[str, Range]] = {
        **NPG._ranges,
        "line_search_shrinking_factor": FRACTION,
        "line_search_max_iter": COUNT,
        "kl_constraint": one_of("mean", "max"),
    }

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        ignored = [name for name in METHODS_OF_CONTRIB if name in vars(cls)]
        if ignored:
            warnings.warn(
                f"{cls.__name__} has {' and '.join(ignored)}, which sb3_contrib.TRPO calls and this TRPO does not: its step "
                "is made by functions of sb3_trpo_plus.trust_region, see docs/algorithm.md",
                stacklevel=2,
            )

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
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
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
        fisher_sub_sampling_factor: int = 1,
        cg_residual_tol: float = 1e-5,
        ent_coef: float | Schedule = 0.0,
        fisher: str = "gauss_newton",
        kl_constraint: str = "mean",
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
            cg_max_steps=cg_max_steps,
            cg_damping=cg_damping,
            n_critic_updates=n_critic_updates,
            gae_lambda=gae_lambda,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            normalize_advantage=normalize_advantage,
            target_kl=target_kl,
            sub_sampling_factor=sub_sampling_factor,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            fisher_sub_sampling_factor=fisher_sub_sampling_factor,
            cg_residual_tol=cg_residual_tol,
            ent_coef=ent_coef,
            fisher=fisher,
            log_improvement_bound=log_improvement_bound,
            on_nonfinite=on_nonfinite,
        )
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.kl_constraint = kl_constraint
        if _init_setup_model:
            self._setup_model()

    def _step(
        self,
        sample: Sample,
        actor_parameters: list[th.nn.Parameter],
        gradient: th.Tensor,
        fisher: FisherVectorProduct,
        evaluate: Callable[[], Candidate],
        surrogate_old: float,
    ) -> StepReport:
        def largest_curvature(direction: th.Tensor) -> float:
            return kl_curvature(self.policy, sample.observations, actor_parameters, direction).max().item()

        return trust_region_step(
            actor_parameters,
            gradient,
            fisher,
            evaluate,
            surrogate_old,
            settings=self._settings(),
            largest_curvature=largest_curvature if self.kl_constraint == "max" else None,
        )

    def _settings(self) -> StepSettings:
        return replace(
            super()._settings(),
            shrinking_factor=self.line_search_shrinking_factor,
            max_tries=self.line_search_max_iter,
        )

    def _log_step(self, report: StepReport) -> None:
        super()._log_step(report)
        self.logger.record("train/kl_divergence_loss", report.mean_kl)
        self.logger.record("train/is_line_search_success", float(report.accepted))
        self.logger.record("train/line_search_steps", len(report.tried))
        self.logger.debug(f"Line search: {report.reason}")

    def _kl_used(self, report: StepReport) -> float:
        limit = self.kl_limit
        return (report.max_kl if self.kl_constraint == "max" else report.mean_kl) / limit if limit > 0 else 0.0

    def _log_refusal(self, report: StepReport) -> None:
        """No warning: a failed line search is normal now and then, and logged as ``train/is_line_search_success``."""

    def _skip(self, cause: str, sentence: str) -> None:
        super()._skip(cause, sentence)
        if cause != "critic_fit":
            self.logger.record("train/is_line_search_success", 0.0)

    def _excluded_save_params(self) -> list[str]:
        # By this argument of NPG's, which is always None here, files of NPG are recognised.
        return [*super()._excluded_save_params(), "step_size"]
