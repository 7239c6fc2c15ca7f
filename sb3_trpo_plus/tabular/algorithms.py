"""The exact algorithms, policy by policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sb3_trpo_plus.tabular.mdp import FiniteMDP, FloatArray, checked, evaluate, expected_return, visitation
from sb3_trpo_plus.tabular.path import Z_MAX, Path, greedy, root
from sb3_trpo_plus.tabular.theory import coefficient_of, kl_divergence

# Of the machine's precision, for what may be no more than the rounding of a linear solve.
ROUNDING = 10 * float(np.finfo(np.float64).eps)

SMALLEST_KL = 1e-20


@dataclass(frozen=True, eq=False)
class Iteration:
    """
    One update of a policy.

    :param policy: after it, shape (S, A)
    :param expected_return: eta of that policy
    :param lower_bound: of ``expected_return``, known before the update: the surrogate less a penalty
    :param max_kl: KL(old || new), maximum over states, nats; infinite where an action that the old policy takes is given up
    :param penalty: 2 eps gamma / (1 - gamma)^2 for conservative policy iteration, C = 4 eps gamma / (1 - gamma)^2 for the
        others; it multiplies alpha^2 and max_kl
    :param alpha: of conservative policy iteration's mixture; None for the others
    """

    policy: FloatArray
    expected_return: float
    lower_bound: float
    max_kl: float
    penalty: float
    alpha: float | None = None


def conservative_policy_iteration(mdp: FiniteMDP, policy: npt.ArrayLike, n_iterations: int) -> list[Iteration]:
    """
    Mix the policy with the greedy one: new = (1 - alpha) old + alpha greedy, with the alpha in [0, 1] that maximises the bound

        ``eta(new) >= L_old(new) - 2 eps gamma alpha^2 / (1 - gamma)^2``, ``eps = max_s |sum_a greedy(a|s) A_old(s, a)|``.

    eta never decreases. A policy that has nothing to gain stays as it is.

    Sources: Kakade and Langford, 2002; Schulman et al., 2015, equations 5 and 6.

    :param mdp: S states, A actions
    :param policy: the first one, shape (S, A)
    :param n_iterations: updates to do
    :return: one record an update
    :raises ValueError: when the policy's shape does not fit, or a row is no distribution
    """

    def update(old: FloatArray, rho: FloatArray, advantages: FloatArray) -> _Update:
        best = greedy(advantages)
        in_state = (best * advantages).sum(axis=1)
        coefficient = 2 * float(np.abs(in_state).max()) * mdp.gamma / (1 - mdp.gamma) ** 2
        slope = float(rho @ in_state)
        alpha = min(1.0, max(0.0, slope) / (2 * coefficient)) if coefficient else 1.0
        return _Update((1 - alpha) * old + alpha * best, coefficient, alpha)

    return _iterate(mdp, policy, n_iterations, update)


def algorithm_1(mdp: FiniteMDP, policy: npt.ArrayLike, n_iterations: int) -> list[Iteration]:
    """
    Maximise L_old(new) - C max_s KL(old || new) over all policies, exactly: the paper's Algorithm 1.

    For a given maximum d of the KL, each state has a problem of its own, whose maximum grows with d by its multiplier
    lambda_s(d). So at the best d, sum_s rho(s) lambda_s(d) = C.

    eta never decreases. A policy that has nothing to gain stays as it is. So does one that would gain less by an action it
    never takes than the penalty for it: unlike policy iteration, the algorithm can end at a deterministic policy that is not
    optimal.

    Source: Schulman et al., 2015, section 3.

    :param mdp: S states, A actions
    :param policy: the first one, shape (S, A)
    :param n_iterations: updates to do
    :return: one record an update
    :raises ValueError: when the policy's shape does not fit, or a row is no distribution
    """

    def update(old: FloatArray, rho: FloatArray, advantages: FloatArray) -> _Update:
        c = coefficient_of(mdp.gamma, advantages)
        if c == 0:
            return _Update(greedy(advantages), c)
        path = Path.of(old, advantages)

        def excess_of_c(log_kl: FloatArray) -> tuple[FloatArray, FloatArray]:
            at = path.with_kl(math.exp(log_kl[0]))
            weights = rho * np.exp(at.log_multiplier)
            total = weights.sum()
            # States that stay behind this KL, for all their actions are worth the same, have no say.
            rate = np.divide(at.log_multiplier_slope, at.kl_slope, out=np.zeros_like(rho), where=at.kl_slope > 0)
            slope = -math.exp(log_kl[0]) * (weights * rate).sum() / total if total else 0.0
            return np.array([math.log(c) - _log(total)]), np.array([slope])

        log_kl = root(excess_of_c, np.log([SMALLEST_KL]), np.log([Z_MAX]))
        return _Update(path.with_kl(math.exp(log_kl[0])).policy, c)

    return _iterate(mdp, policy, n_iterations, update)


def trust_region(mdp: FiniteMDP, policy: npt.ArrayLike, n_iterations: int, delta: float) -> list[Iteration]:
    """
    Maximise L_old(new) subject to sum_s rho(s) KL(old || new) / sum_s rho(s) <= delta over all policies, exactly: the problem
    that TRPO solves approximately. Nothing keeps eta from decreasing.

    Source: Schulman et al., 2015, equations 12 and 14.

    :param mdp: S states, A actions
    :param policy: the first one, shape (S, A)
    :param n_iterations: updates to do
    :param delta: limit on the mean KL, nats, positive
    :return: one record an update
    :raises ValueError: when delta is not positive, the policy's shape does not fit, or a row is no distribution
    """
    if not 0 < delta < math.inf:
        raise ValueError(f"delta is {delta}: give a positive limit on the mean KL")

    def update(old: FloatArray, rho: FloatArray, advantages: FloatArray) -> _Update:
        path, weights = Path.of(old, advantages), rho / rho.sum()

        def excess_of_delta(minus_log_multiplier: FloatArray) -> tuple[FloatArray, FloatArray]:
            at = path.with_multiplier(-minus_log_multiplier[0])
            mean_kl = weights @ at.kl
            rate = np.divide(at.kl_slope, -at.log_multiplier_slope, out=np.zeros_like(rho), where=at.log_multiplier_slope < 0)
            slope = weights @ rate / mean_kl if mean_kl else 0.0
            return np.array([_log(mean_kl) - math.log(delta)]), np.array([slope])

        # With so large a multiplier no state's KL is above delta, by the same inequality as in with_kl.
        low = -path.log_scale.max() - math.log1p(max(1.0, (8 * delta) ** -0.5))
        minus_log_multiplier = root(excess_of_delta, np.array([low]), np.array([low + Z_MAX]))
        at = path.with_multiplier(-minus_log_multiplier[0])
        return _Update(at.policy, coefficient_of(mdp.gamma, advantages))

    return _iterate(mdp, policy, n_iterations, update)


class _Update(NamedTuple):
    policy: FloatArray
    penalty: float
    alpha: float | None = None


def _iterate(
    mdp: FiniteMDP, policy: npt.ArrayLike, n_iterations: int, update: Callable[[FloatArray, FloatArray, FloatArray], _Update]
) -> list[Iteration]:
    old = checked(mdp, policy)
    iterations = []
    for _ in range(n_iterations):
        values, _, advantages = evaluate(mdp, old)
        rho = visitation(mdp, old)
        new, penalty, alpha = update(old, rho, advantages)
        gain = float(rho @ ((new - old) * advantages).sum(axis=1))
        if gain <= ROUNDING * float(np.abs(values).max() * rho.sum()):
            new, gain, alpha = old, 0.0, None if alpha is None else 0.0
        max_kl = float(kl_divergence(old, new).max())
        distance = max_kl if alpha is None else alpha**2
        bound = float(mdp.initial @ values) + gain - (penalty * distance if penalty else 0.0)
        iterations.append(Iteration(new, expected_return(mdp, new), bound, max_kl, penalty, alpha))
        old = new
    return iterations


def _log(number: float) -> float:
    return math.log(number) if number > 0 else -math.inf
