"""Conjugate gradients for symmetric positive definite systems that are known by their products alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch as th

CHECK_RESIDUAL_EVERY = 30
DRIFT = 0.1


@dataclass(frozen=True)
class CGResult:
    """
    :param solution: x, shape (n,)
    :param product: A x, computed anew for the returned x, shape (n,)
    :param iterations: iterations done
    :param relative_residual: ||b - A x|| / ||b||, from ``product`` and not from the recursion
    :param breakdown: why the iteration had to stop early, in words; None if it did not have to
    """

    solution: th.Tensor
    product: th.Tensor
    iterations: int
    relative_residual: float
    breakdown: str | None = None


@th.no_grad()
def conjugate_gradient(
    product: Callable[[th.Tensor], th.Tensor], b: th.Tensor, max_steps: int, residual_tol: float
) -> CGResult:
    """
    Solve A x = b for a symmetric positive definite A, from x = 0.

    Stops when ||r|| <= residual_tol * ||b||, after ``max_steps`` iterations, or at a breakdown: a curvature p'Ap that is
    not positive (A is not positive definite along p) or not finite. Then the last x before it is returned.

    The recursion for r drifts away from b - A x. So every thirtieth iteration, and before r is believed to be small, b - A x is
    computed; where the two differ by more than a tenth, the iteration starts again from x. Replacing r alone would not do:
    the direction, still conjugate for the old r, can keep the error from ever falling again.

    Source: Hestenes and Stiefel, 1952; Nocedal and Wright, "Numerical Optimization", 2006, algorithm 5.2. Unlike
    sb3-contrib's solver, which starts from small random numbers, it draws none, and its tolerance is relative.

    :param product: v -> A v, both of shape (n,)
    :param b: right-hand side, shape (n,), finite
    :param max_steps: limit on the iterations, at least 1
    :param residual_tol: relative residual at which to stop, at least 0
    :return: the solution and what happened
    """
    norm = th.linalg.vector_norm(b)
    x, a_x = th.zeros_like(b), th.zeros_like(b)
    if norm == 0:
        return CGResult(x, a_x, 0, 0.0)
    # Of unit length, so that squares of a small gradient do not underflow.
    b = b / norm
    direction = residual = b
    squared_norm = residual.dot(residual)
    target = residual_tol**2
    breakdown = None
    iterations = checked_at = 0

    while iterations < max_steps and squared_norm > target:
        a_direction = product(direction)
        curvature = direction.dot(a_direction)
        if not (th.isfinite(curvature) and curvature > 0):
            breakdown = f"curvature p'Ap is {curvature.item():.3g} in iteration {iterations + 1}"
            break
        step = squared_norm / curvature
        x = x + step * direction
        residual = residual - step * a_direction
        previous, squared_norm = squared_norm, residual.dot(residual)
        direction = residual + (squared_norm / previous) * direction
        iterations += 1

        if iterations % CHECK_RESIDUAL_EVERY == 0 or squared_norm <= target:
            a_x, checked_at = product(x), iterations
            true_residual = b - a_x
            if th.linalg.vector_norm(true_residual - residual) > DRIFT * th.linalg.vector_norm(true_residual):
                direction = residual = true_residual
                squared_norm = residual.dot(residual)

    if checked_at != iterations:
        a_x = product(x)
    return CGResult(norm * x, norm * a_x, iterations, th.linalg.vector_norm(b - a_x).item(), breakdown)
