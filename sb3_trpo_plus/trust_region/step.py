"""The whole constrained step: search direction, largest step, backtracking; and the natural gradient's, without a search."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch as th

from sb3_trpo_plus.trust_region.conjugate_gradient import conjugate_gradient
from sb3_trpo_plus.trust_region.fisher import FisherVectorProduct
from sb3_trpo_plus.trust_region.line_search import Candidate, LineSearchResult, backtrack


@dataclass(frozen=True)
class StepReport:
    """
    What one policy update did. KLs are KL(old || new) in nats, on the batch of the update.

    :param accepted: whether the parameters moved
    :param reason: what happened, in words
    :param surrogate_old: surrogate objective before
    :param surrogate_new: surrogate objective after (the same as before when nothing moved)
    :param gradient_norm: Euclidean norm of the surrogate's gradient
    :param mean_kl: mean over states
    :param max_kl: maximum over states
    :param step_size: factor of the search direction in the step that was taken
    :param tried: the candidates looked at, in order, each with its factor of the search direction
    :param cg_iterations: iterations of conjugate gradients
    :param cg_relative_residual: ||g - A s|| / ||g||
    :param direction: s, shape (number of parameters,); None where conjugate gradients found none
    :param slope: g's, of the surrogate along the direction
    :param curvature: s'As, of the quadratic model of the constrained KL along the direction, with the damping
    :param damping_share: share of s'As that is damping, from 0 to 1: the KL of the step is about the rest of its limit
    """

    accepted: bool
    reason: str
    surrogate_old: float
    surrogate_new: float
    gradient_norm: float
    mean_kl: float = 0.0
    max_kl: float = 0.0
    step_size: float = 0.0
    tried: tuple[tuple[float, Candidate], ...] = ()
    cg_iterations: int = 0
    cg_relative_residual: float = 0.0
    direction: th.Tensor | None = None
    slope: float = 0.0
    curvature: float = 0.0
    damping_share: float = 0.0

    @property
    def line_search_steps(self) -> int:
        """Candidates looked at."""
        return len(self.tried)

    @property
    def expected_improvement(self) -> float:
        """Of the surrogate, to first order, by the step that was taken."""
        return self.step_size * self.slope

    @property
    def improvement_ratio(self) -> float:
        """Actual over expected improvement of the surrogate: near 1 where the linear model holds, 0 for no step."""
        if self.expected_improvement == 0.0:
            return 0.0
        return (self.surrogate_new - self.surrogate_old) / self.expected_improvement


@dataclass(frozen=True)
class StepSettings:
    """
    How a step is made.

    :param max_kl: delta, limit on the KL, nats, positive
    :param damping: added to the diagonal of F, at least 0
    :param cg_max_steps: limit on the iterations of conjugate gradients, at least 1
    :param cg_residual_tol: relative residual at which they stop, at least 0
    :param shrinking_factor: of the line search's step at each backtrack, in (0, 1)
    :param max_tries: steps that the line search tries before it gives up, at least 1
    :param step_size: factor of s, for :func:`natural_gradient_step` alone; None: the one at which the quadratic model of the
        mean KL meets its limit
    """

    max_kl: float
    damping: float
    cg_max_steps: int
    cg_residual_tol: float
    shrinking_factor: float = 0.8
    max_tries: int = 10
    step_size: float | None = None


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
    settings: StepSettings,
    largest_curvature: Callable[[th.Tensor], float] | None = None,
) -> StepReport:
    """
    Maximise the surrogate L within KL(old || new) <= delta, by one step along the natural gradient.

    Solve (F + damping I) s = g, scale s to the largest step that the quadratic model of the KL allows, and backtrack until
    the true KL and the true surrogate agree. The parameters either move to a point where both conditions hold, or stay as
    they were, to the bit.

    Source: Schulman et al., "Trust Region Policy Optimization", 2015, section 6 and appendix C; section 4, equation 11 for the
    constraint on the maximum KL.

    :param parameters: the actor's parameters, moved in place
    :param gradient: g, of L at the present parameters, flat, shape (number of parameters,)
    :param fisher: v -> F v, without damping
    :param evaluate: surrogate and KL at the present values of the parameters
    :param surrogate_old: L at the present parameters, by the same computation as in ``evaluate``
    :param settings: delta and the rest
    :param largest_curvature: s -> the maximum over states of s'Fs for that state alone: the limit is then on the maximum of
        the KL over states; None: on its mean
    :return: what happened
    """

    def curvature(direction: th.Tensor, product: th.Tensor) -> float:
        if largest_curvature is None:
            return direction.dot(product).item()
        return largest_curvature(direction) + settings.damping * direction.dot(direction).item()

    def search(full_step: th.Tensor) -> LineSearchResult:
        return backtrack(
            parameters,
            full_step,
            evaluate,
            surrogate_old,
            settings.max_kl,
            settings.shrinking_factor,
            settings.max_tries,
            constrained="mean_kl" if largest_curvature is None else "max_kl",
        )

    return _step(gradient, fisher, surrogate_old, settings, curvature, search)


def natural_gradient_step(
    parameters: Sequence[th.Tensor],
    gradient: th.Tensor,
    fisher: FisherVectorProduct,
    evaluate: Callable[[], Candidate],
    surrogate_old: float,
    settings: StepSettings,
) -> StepReport:
    """
    The first step that :func:`trust_region_step` tries, or one of a fixed size, whatever becomes of the KL and the surrogate.

    Where the policy after it is not finite the parameters stay as they were, to the bit.

    Sources: Kakade, "A natural policy gradient", 2001, for the fixed size; Schulman et al., "Trust Region Policy
    Optimization", 2015, section 7.

    :param parameters: as in :func:`trust_region_step`, and so are the other arguments
    :param settings: ``step_size`` is the fixed size; the line search's have no meaning
    :return: what happened
    """

    def take(full_step: th.Tensor) -> LineSearchResult:
        # Any finite candidate is within these limits.
        return backtrack(parameters, full_step, evaluate, -math.inf, math.inf, shrinking_factor=0.5, max_tries=1)

    return _step(gradient, fisher, surrogate_old, settings, lambda s, product: s.dot(product).item(), take)


def _step(
    gradient: th.Tensor,
    fisher: FisherVectorProduct,
    surrogate_old: float,
    settings: StepSettings,
    curvature: Callable[[th.Tensor, th.Tensor], float],
    search: Callable[[th.Tensor], LineSearchResult],
) -> StepReport:
    """The direction s with A = F + damping I, the size that its curvature allows, and the search along it."""
    norm = th.linalg.vector_norm(gradient).item()

    def unchanged(reason: str, **details: object) -> StepReport:
        return StepReport(False, reason, surrogate_old, surrogate_old, norm, **details)  # type: ignore[arg-type]

    if not math.isfinite(surrogate_old):
        return unchanged("the surrogate objective is not finite")
    if not math.isfinite(norm):
        how = "too large" if th.isfinite(gradient).all() else "not finite"
        return unchanged(f"the gradient of the surrogate objective is {how}")
    if norm == 0.0:
        return unchanged(f"the gradient of the surrogate objective is {'too small' if gradient.any() else 'zero'}")

    def damped(vector: th.Tensor) -> th.Tensor:
        return fisher(vector).add_(vector, alpha=settings.damping)

    cg = conjugate_gradient(damped, gradient, settings.cg_max_steps, settings.cg_residual_tol)
    found = {"cg_iterations": cg.iterations, "cg_relative_residual": cg.relative_residual}
    if not (math.isfinite(cg.relative_residual) and th.isfinite(cg.product).all()):
        cause = cg.breakdown or "it is too large, or the product of the Fisher matrix with it is not finite"
        return unchanged(f"conjugate gradients found no direction: {cause}", **found)
    along = curvature(cg.solution, cg.product)
    if not (math.isfinite(along) and along > 0):
        cause = cg.breakdown or f"s'As is {along:.3g}, the gradient is too small or too large"
        return unchanged(f"conjugate gradients found no direction: {cause}", **found)

    size = settings.step_size or largest_step(along, settings.max_kl)
    full_step = size * cg.solution
    if not th.isfinite(full_step).all():
        return unchanged("the largest step is not finite", **found)
    result = search(full_step)
    reason = result.reason if cg.breakdown is None else f"{result.reason}; conjugate gradients stopped early: {cg.breakdown}"
    details: dict[str, Any] = {
        **found,
        "tried": tuple((scale * size, candidate) for scale, candidate in result.tried),
        "direction": cg.solution,
        # Of a gradient of unit length, as the product of two large vectors overflows.
        "slope": norm * (gradient / norm).dot(cg.solution).item(),
        "curvature": along,
        "damping_share": _share_of(settings.damping, th.linalg.vector_norm(cg.solution).item(), along),
    }
    if result.accepted is None:
        return unchanged(reason, **details)
    return StepReport(
        accepted=True,
        reason=reason,
        surrogate_old=surrogate_old,
        surrogate_new=result.accepted.surrogate,
        gradient_norm=norm,
        mean_kl=result.accepted.mean_kl,
        max_kl=result.accepted.max_kl,
        step_size=result.scale * size,
        **details,
    )


def _share_of(damping: float, norm: float, curvature: float) -> float:
    """damping s's / s'As, where rounding may make F indefinite along s, or the norm of s overflow."""
    return min(1.0, damping * norm * norm / curvature) if damping > 0 else 0.0
