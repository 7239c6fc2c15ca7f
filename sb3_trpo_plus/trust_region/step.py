"""The whole constrained step: search direction, largest step, backtracking."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch as th

from sb3_trpo_plus.trust_region.conjugate_gradient import conjugate_gradient
from sb3_trpo_plus.trust_region.fisher import FisherVectorProduct
from sb3_trpo_plus.trust_region.line_search import Candidate, backtrack


@dataclass(frozen=True)
class StepReport:
    """
    What one policy update did. KLs are KL(old || new) in nats, on the batch of the update.

    :param accepted: whether the parameters moved
    :param reason: what happened, in words
    :param surrogate_old: surrogate objective before
    :param surrogate_new: surrogate objective after (the same as before when nothing moved)
    :param gradient_norm: Euclidean norm of the surrogate's gradient
    :param expected_improvement: of the surrogate, to first order, by the step that was taken
    :param mean_kl: mean over states
    :param max_kl: maximum over states
    :param step_size: factor of the search direction in the step that was taken
    :param line_search_steps: candidates looked at
    :param cg_iterations: iterations of conjugate gradients
    :param cg_relative_residual: ||g - A s|| / ||g||
    """

    accepted: bool
    reason: str
    surrogate_old: float
    surrogate_new: float
    gradient_norm: float
    expected_improvement: float = 0.0
    mean_kl: float = 0.0
    max_kl: float = 0.0
    step_size: float = 0.0
    line_search_steps: int = 0
    cg_iterations: int = 0
    cg_relative_residual: float = 0.0

    @property
    def improvement_ratio(self) -> float:
        """Actual over expected improvement of the surrogate: near 1 where the linear model holds, 0 for no step."""
        if self.expected_improvement == 0.0:
            return 0.0
        return (self.surrogate_new - self.surrogate_old) / self.expected_improvement


def largest_step(curvature: float, max_kl: float) -> float:
    """
    The factor beta of the search direction s at which the quadratic model of the KL, beta^2 s'As / 2, meets its limit.

    Source: Schulman et al., "Trust Region Policy Optimization", 2015, appendix C: beta = sqrt(2 delta / s'As).

    :param curvature: s'As, positive
    :param max_kl: delta, nats
    :return: beta
    """
    return math.sqrt(2 * max_kl / curvature)


def trust_region_step(
    parameters: Sequence[th.Tensor],
    gradient: th.Tensor,
    fisher: FisherVectorProduct,
    evaluate: Callable[[], Candidate],
    surrogate_old: float,
    *,
    max_kl: float,
    damping: float,
    cg_max_steps: int,
    cg_residual_tol: float,
    shrinking_factor: float,
    max_tries: int,
) -> StepReport:
    """
    Maximise the surrogate L within mean KL(old || new) <= max_kl, by one step along the natural gradient.

    Solve (F + damping I) s = g, scale s to the largest step that the quadratic model of the KL allows, and backtrack until
    the true KL and the true surrogate agree. The parameters either move to a point where both conditions hold, or stay as
    they were, to the bit.

    Source: Schulman et al., "Trust Region Policy Optimization", 2015, section 6 and appendix C.

    :param parameters: the actor's parameters, moved in place
    :param gradient: g, of L at the present parameters, flat, shape (number of parameters,)
    :param fisher: v -> F v, without damping
    :param evaluate: surrogate and KL at the present values of the parameters
    :param surrogate_old: L at the present parameters, by the same computation as in ``evaluate``
    :param max_kl: delta, nats, positive
    :param damping: added to the diagonal of F, at least 0
    :param cg_max_steps: limit on the iterations of conjugate gradients
    :param cg_residual_tol: relative residual at which they stop
    :param shrinking_factor: of the step at each backtrack, in (0, 1)
    :param max_tries: steps tried before giving up
    :return: what happened
    """
    norm = th.linalg.vector_norm(gradient).item()

    def unchanged(reason: str, **details: float) -> StepReport:
        return StepReport(False, reason, surrogate_old, surrogate_old, norm, **details)  # type: ignore[arg-type]

    if not math.isfinite(surrogate_old):
        return unchanged("the surrogate objective is not finite")
    if not math.isfinite(norm):
        return unchanged("the gradient of the surrogate objective is not finite")
    if norm == 0.0:
        return unchanged("the gradient of the surrogate objective is zero")

    cg = conjugate_gradient(lambda v: fisher(v).add_(v, alpha=damping), gradient, cg_max_steps, cg_residual_tol)
    solved = {"cg_iterations": cg.iterations, "cg_relative_residual": cg.relative_residual}
    curvature = cg.solution.dot(cg.product).item()
    if not (math.isfinite(curvature) and curvature > 0):
        cause = cg.breakdown or f"s'As is {curvature:.3g}, the gradient is too small or too large"
        return unchanged(f"conjugate gradients found no direction: {cause}", **solved)

    step_size = largest_step(curvature, max_kl)
    full_step = step_size * cg.solution
    if not th.isfinite(full_step).all():
        return unchanged("the largest step is not finite", **solved)
    search = backtrack(parameters, full_step, evaluate, surrogate_old, max_kl, shrinking_factor, max_tries)
    reason = search.reason if cg.breakdown is None else f"{search.reason}; conjugate gradients stopped early: {cg.breakdown}"
    if search.accepted is None:
        return unchanged(reason, line_search_steps=search.tries, **solved)
    return StepReport(
        accepted=True,
        reason=reason,
        surrogate_old=surrogate_old,
        surrogate_new=search.accepted.surrogate,
        gradient_norm=norm,
        expected_improvement=search.scale * step_size * gradient.dot(cg.solution).item(),
        mean_kl=search.accepted.mean_kl,
        max_kl=search.accepted.max_kl,
        step_size=search.scale * step_size,
        line_search_steps=search.tries,
        cg_iterations=cg.iterations,
        cg_relative_residual=cg.relative_residual,
    )
