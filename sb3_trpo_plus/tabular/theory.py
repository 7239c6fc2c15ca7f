"""What the theory of trust regions says of two policies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sb3_trpo_plus.tabular.mdp import FiniteMDP, FloatArray, checked, evaluate, visitation


def surrogate(mdp: FiniteMDP, old: npt.ArrayLike, new: npt.ArrayLike) -> float:
    """
    L_old(new) = eta(old) + sum_s rho_old(s) sum_a new(a|s) A_old(s, a): equation 3.

    :param mdp: S states, A actions
    :param old: policy of the frequencies and the advantages, shape (S, A)
    :param new: policy of the actions, shape (S, A)
    :return: L
    :raises ValueError: when a policy's shape does not fit, or a row is no distribution
    """
    values, _, advantages = evaluate(mdp, old)
    return float(mdp.initial @ values + visitation(mdp, old) @ (checked(mdp, new) * advantages).sum(axis=1))


def kl_divergence(old: npt.ArrayLike, new: npt.ArrayLike) -> FloatArray:
    """
    KL(old || new) in each state, exact to rounding for policies that differ by little too, and never negative.

    :param old: shape (S, A), rows sum to one
    :param new: shape (S, A), rows sum to one
    :return: nats, shape (S,); infinite where an action that ``old`` takes is given up
    """
    old, new = np.asarray(old, np.float64), np.asarray(new, np.float64)
    taken = old > 0
    with np.errstate(divide="ignore"):
        log_ratio = np.log(np.divide(new, old, out=np.ones_like(old), where=taken))
    change = np.divide(new - old, old, out=np.zeros_like(old), where=taken)
    np.log1p(change, out=log_ratio, where=np.abs(change) < 0.5)
    # The changes sum to zero over all actions; with them, each action's part is as small as the sum.
    parts: FloatArray = np.where(taken, old * (change - log_ratio), new)
    return np.asarray(parts.sum(axis=1))


def penalty_coefficient(mdp: FiniteMDP, policy: npt.ArrayLike) -> float:
    """
    C = 4 eps gamma / (1 - gamma)^2 with eps = ``max |A(s, a)|``: equation 9.

    :param mdp: S states, A actions
    :param policy: the old one, shape (S, A)
    :return: C
    :raises ValueError: when the policy's shape does not fit, or a row is no distribution
    """
    return coefficient_of(mdp.gamma, evaluate(mdp, policy).advantages)


def lower_bound(mdp: FiniteMDP, old: npt.ArrayLike, new: npt.ArrayLike) -> float:
    """
    L_old(new) - C max_s KL(old || new), which eta(new) is never below: equation 9.

    :param mdp: S states, A actions
    :param old: shape (S, A)
    :param new: shape (S, A)
    :return: the bound; minus infinity where the KL is infinite and C is not zero
    :raises ValueError: when a policy's shape does not fit, or a row is no distribution
    """
    c, max_kl = penalty_coefficient(mdp, old), float(kl_divergence(old, new).max())
    return surrogate(mdp, old, new) - (c * max_kl if c else 0.0)


def coefficient_of(gamma: float, advantages: FloatArray) -> float:
    return 4 * float(np.abs(advantages).max()) * gamma / (1 - gamma) ** 2
