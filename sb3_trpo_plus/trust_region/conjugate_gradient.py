"""Conjugate gradients for symmetric positive definite systems that are known by their products alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch as th

Product = Callable[[th.Tensor], th.Tensor]

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
def conjugate_gradient(product: Product, b: th.Tensor, max_steps: int, residual_tol: float) -> CGResult:
    """
    Solve A x = b for a symmetric positive definite A, from x = 0.

    Stops when ||r|| <= residual_tol * ||b||, after ``max_steps`` iterations, or at a breakdown: a curvature p'Ap that is
    not positive (A is not positive definite along p) or not finite. Then the last x before it is returned.

    The recursion for r drifts away from b - A x. So every thirtieth iteration, and before r is believed to be small, b - A x
    is computed; where the two differ by more than a tenth, the iteration starts again from x. Replacing r alone would not do:
    the direction, still conjugate for the old r, can keep the error from ever falling again.

    On an accelerator nothing is read back before the end: iterations after the stop change nothing, and a small r is believed.

    Source: Hestenes and Stiefel, 1952; Nocedal and Wright, "Numerical Optimization", 2006, algorithm 5.2. Unlike
    sb3-contrib's solver, which starts from small random numbers, it draws none, and its tolerance is relative.

    :param product: v -> A v, both of shape (n,); what it returns need only be valid until the next call
    :param b: right-hand side, shape (n,), finite
    :param max_steps: limit on the iterations, at least 1
    :param residual_tol: relative residual at which to stop, at least 0
    :return: the solution and what happened
    """
    solve = _solve if _can_look(b) else _solve_without_looking
    norm = th.linalg.vector_norm(b)
    # Of unit length, so that squares of a small gradient do not underflow; b = 0 stays 0.
    b = b / norm.clamp(min=th.finfo(b.dtype).tiny)
    x, iterations, bad_curvature = solve(product, b, max_steps, residual_tol**2)
    a_x = product(x)
    breakdown = None if bad_curvature is None else f"curvature p'Ap is {bad_curvature:.3g} in iteration {iterations + 1}"
    return CGResult(norm * x, norm * a_x, iterations, th.linalg.vector_norm(b - a_x).item(), breakdown)


def _can_look(tensor: th.Tensor) -> bool:
    """Whether Python may branch on its values without waiting for an accelerator's queue of work."""
    return tensor.device.type == "cpu"


def _solve(product: Product, b: th.Tensor, max_steps: int, target: float) -> tuple[th.Tensor, int, float | None]:
    """Solution, iterations done, and the curvature that ended them if one did; ``target`` is that of the squared residual."""
    x, residual, direction, true_residual = th.zeros_like(b), b.clone(), b.clone(), th.empty_like(b)
    squared_norm = residual.dot(residual).item()
    for i in range(max_steps):
        if squared_norm <= target:
            return x, i, None
        a_direction = product(direction)
        curvature = direction.dot(a_direction).item()
        if not (math.isfinite(curvature) and curvature > 0):
            return x, i, curvature
        step = squared_norm / curvature
        x.add_(direction, alpha=step)
        residual.sub_(a_direction, alpha=step)
        previous, squared_norm = squared_norm, residual.dot(residual).item()
        direction.mul_(squared_norm / previous).add_(residual)

        if (i + 1) % CHECK_RESIDUAL_EVERY == 0 or squared_norm <= target:
            th.sub(b, product(x), out=true_residual)
            if th.linalg.vector_norm(true_residual - residual) > DRIFT * th.linalg.vector_norm(true_residual):
                residual.copy_(true_residual)
                direction.copy_(true_residual)
                squared_norm = residual.dot(residual).item()
    return x, max_steps, None


def _solve_without_looking(
    product: Product, b: th.Tensor, max_steps: int, target: float
) -> tuple[th.Tensor, int, float | None]:
    """The same with masks in the place of branches, up to the last line."""
    x, residual, direction, true_residual = th.zeros_like(b), b.clone(), b.clone(), th.empty_like(b)
    squared_norm = residual.dot(residual)
    active, broken = squared_norm > target, th.zeros_like(squared_norm, dtype=th.bool)
    iterations, bad_curvature = th.zeros_like(squared_norm), th.zeros_like(squared_norm)
    for i in range(max_steps):
        a_direction = product(direction)
        curvature = direction.dot(a_direction)
        breaks = active & ~(th.isfinite(curvature) & (curvature > 0))
        bad_curvature = th.where(breaks, curvature, bad_curvature)
        active, broken = active & ~breaks, broken | breaks
        iterations += active
        step = th.where(active, squared_norm / curvature, 0.0)
        x.addcmul_(direction, step)
        residual.addcmul_(th.where(active, a_direction, 0.0), step, value=-1)
        previous, squared_norm = squared_norm, residual.dot(residual)
        direction.mul_(th.where(active, squared_norm / previous, 0.0)).add_(residual)

        if (i + 1) % CHECK_RESIDUAL_EVERY == 0:
            th.sub(b, product(x), out=true_residual)
            difference = th.linalg.vector_norm(true_residual - residual)
            drifted = active & (difference > DRIFT * th.linalg.vector_norm(true_residual))
            for vector in (residual, direction):
                vector.copy_(th.where(drifted, true_residual, vector))
            squared_norm = residual.dot(residual)
        active = active & (squared_norm > target)
    return x, int(iterations), bad_curvature.item() if broken else None
