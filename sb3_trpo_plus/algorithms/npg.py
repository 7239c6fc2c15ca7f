"""The natural policy gradient: TRPO without the line search."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trpo_plus.algorithms.arguments import POSITIVE, check_range
from sb3_trpo_plus.algorithms.trpo import TRPO
from sb3_trpo_plus.rollouts.sample import Sample
from sb3_trpo_plus.trust_region.fisher import FisherVectorProduct
from sb3_trpo_plus.trust_region.line_search import Candidate
from sb3_trpo_plus.trust_region.step import StepReport, natural_gradient_step

NOT_HERE = ("line_search_shrinking_factor", "line_search_max_iter", "kl_constraint")


class NPG(TRPO):
    """
    Natural Policy Gradient (NPG): the direction (F + damping I)^-1 g, and a step along it that nothing checks.

    The step is the largest that the quadratic model of the mean KL allows, so the true KL may exceed ``target_kl``; or it has
    a fixed size, as Kakade's. Only where the policy after it would not be finite are the parameters left as they were.

    Papers: Kakade, "A natural policy gradient", 2001; Schulman et al., https://arxiv.org/abs/1502.05477, section 7

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class)
    :param env: The environment to learn from (an id that is registered in Gymnasium, an env or a VecEnv)
    :param learning_rate: Learning rate of the critic; a float or a function of the remaining progress (from 1 to 0)
    :param step_size: Factor of the natural gradient in a step, positive; ``None``: sqrt(2 target_kl / s'(F + damping I)s)
    :param kwargs: Every other argument of :class:`~sb3_trpo_plus.TRPO`, with its meaning and default, but for those of the
        line search and ``kl_constraint``
    :raises TypeError: an argument of the line search is given
    :raises ValueError: an argument is out of its range
    """

    _saved_attributes: ClassVar[tuple[str, ...]] = ("cg_max_steps", "step_size")

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        *,
        step_size: float | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        given = [name for name in NOT_HERE if name in kwargs]
        if given:
            raise TypeError(f"NPG has no line search and so no argument {' or '.join(given)}: leave it out, or use TRPO")
        super().__init__(policy, env, learning_rate, _init_setup_model=False, **kwargs)
        self.step_size = step_size
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
        return natural_gradient_step(
            actor_parameters,
            gradient,
            fisher,
            evaluate,
            surrogate_old,
            max_kl=self.kl_limit,
            damping=self.cg_damping,
            cg_max_steps=self.cg_max_steps,
            cg_residual_tol=self.cg_residual_tol,
            step_size=self.step_size,
        )

    def _log_step(self, report: StepReport) -> None:
        if report.tried and not report.accepted:
            warnings.warn(f"This policy update was skipped, the policy stays as it was: {report.reason}")
        self._log_direction(report)

    def _log_skipped(self, reason: str) -> None:
        pass

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        if self.step_size is not None:
            check_range("step_size", self.step_size, POSITIVE)
