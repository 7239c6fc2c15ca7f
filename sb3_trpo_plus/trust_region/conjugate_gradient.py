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

    Python looks at the numbers, and leaves the loop, only where that does not wait for an accelerator's queue of work.
    Elsewhere the iterations after the stop are masked out, and a small r is believed.

    Source: Hestenes and Stiefel, 1952; Nocedal and Wright, "Numerical Optimization", 2006, algorithm 5.2. Unlike
    sb3-contrib's solver, which starts from small random numbers, it draws none, and its tolerance is relative.

    :param product: v -> A v, both of shape (n,); what it returns need only be valid until the next call
    :param b: right-hand side, shape (n,), finite
    :param max_steps: limit on the iterations, at least 1
    :param residual_tol: relative residual at which to stop, at least 0
    :return: the solution and what happened
    """
    looks, target = _can_look(b), residual_tol**2
    norm = th.linalg.vector_norm(b)
    # Of unit length, so that squares of a small gradient do not underflow; b = 0 stays 0.
    b = b / norm.clamp(min=th.finfo(b.dtype).tiny)
    x, residual, direction, true_residual = th.zeros_like(b), b.clone(), b.clone(), th.empty_like(b)
    squared_norm = residual.dot(residual)
    iterations, bad_curvature = th.zeros_like(squared_norm), th.zeros_like(squared_norm)
    active, broken = th.ones_like(iterations, dtype=th.bool), th.zeros_like(iterations, dtype=th.bool)
    for i in range(max_steps):
        if looks and squared_norm.item() <= target:
            break
        a_direction = product(direction)
        curvature = direction.dot(a_direction)
        if looks and not 0 < curvature.item() < math.inf:
            broken, bad_curvature = active, curvature
            break
        step = squared_norm / curvature
        if not looks:
            is_positive = (curvature > 0) & (curvature < math.inf)
            active = active & (squared_norm > target)
            breaks = active & ~is_positive
            broken, bad_curvature = broken | breaks, th.where(breaks, curvature, bad_curvature)
            active = active & is_positive
            step, a_direction = th.where(active, step, 0.0), th.where(active, a_direction, 0.0)
        iterations += active
        x.addcmul_(direction, step)
        residual.addcmul_(a_direction, step, value=-1)
        previous, squared_norm = squared_norm, residual.dot(residual)
        conjugate = squared_norm / previous
        direction.mul_(conjugate if looks else th.where(active, conjugate, 0.0)).add_(residual)

        if (i + 1) % CHECK_RESIDUAL_EVERY == 0 or (looks and squared_norm.item() <= target):
            th.sub(b, product(x), out=true_residual)
            drift = th.linalg.vector_norm(true_residual - residual)
            drifted = active & (drift > DRIFT * th.linalg.vector_norm(true_residual))
            for vector in (residual, direction):
                vector.copy_(th.where(drifted, true_residual, vector))
            squared_norm = residual.dot(residual)

    a_x = product(x)
    n_done = int(iterations)
    breakdown = f"curvature p'Ap is {bad_curvature.item():.3g} in iteration {n_done + 1}" if broken else None
    return CGResult(norm * x, norm * a_x, n_done, th.linalg.vector_norm(b - a_x).item(), breakdown)


def _can_look(tensor: th.Tensor) -> bool:
    """Whether Python may branch on its values without waiting for an accelerator's queue of work."""
    return tensor.device.type == "cpu"
