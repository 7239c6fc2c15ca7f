"""The policies between an old one and the greedy one, along which the KL grows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sb3_trpo_plus.tabular.mdp import FloatArray

TINY = float(np.finfo(np.float64).tiny)

LOG_MAX = 709.0

ROOT_PRECISION = 1e-13

# exp(-Z_MAX) is zero, so nothing lies beyond.
Z_MAX = 1500.0


class Point(NamedTuple):
    """A point of each state's path; all but the policy have the shape (S,), and slopes are derivatives by the position."""

    policy: FloatArray
    kl: FloatArray
    kl_slope: FloatArray
    log_multiplier: FloatArray
    log_multiplier_slope: FloatArray


@dataclass(frozen=True, eq=False)
class Path:
    """
    In each state, the solutions p of: maximise sum_a p_a A_a subject to KL(old || p) <= d, for all d from 0 (z = -inf) up.

    Where the Lagrangian sum_a p_a A_a - lambda KL(old || p) - nu sum_a p_a has no slope, p_a = lambda old_a / (nu - A_a). The
    position z stands for nu = top + scale exp(-z), with top the best advantage among the actions that ``old`` takes. So with
    gap_a = (top - A_a) / scale,

        log(nu - A_a) = log scale - z + l_a,  l_a = log(1 + exp(z) gap_a),  p_a = old_a exp(-l_a) / sum_b old_b exp(-l_b).

    An action that ``old`` never takes has p_a = 0 as long as A_a < nu. If the best of them is better than top, nu and with it
    z end there (``z_end``). From then on its probability grows at the cost of all others', which shrink by exp(-farther):
    that adds ``farther`` to the KL, and takes it from log lambda.
    """

    old: FloatArray
    log_gap: FloatArray
    log_scale: FloatArray
    newcomer: npt.NDArray[np.bool_]
    z_end: FloatArray

    @classmethod
    def of(cls, old: FloatArray, advantages: FloatArray) -> Path:
        taken = old > 0
        top = np.where(taken, advantages, -np.inf).max(axis=1, keepdims=True)
        ahead = np.where(taken, 0.0, advantages - top).max(axis=1, keepdims=True).clip(min=0.0)
        gap = np.where(taken, top - advantages, 0.0)
        scale = np.maximum(gap.max(axis=1, keepdims=True), ahead)
        scale[scale == 0] = 1.0
        newcomer = greedy(np.where(taken, -np.inf, advantages)).astype(bool) & (ahead > 0)
        with np.errstate(divide="ignore"):
            z_end = np.minimum(-np.log(ahead / scale)[:, 0], Z_MAX)
            return cls(old, np.log(gap / scale), np.log(scale[:, 0]), newcomer, z_end)

    def at(self, z: FloatArray, farther: FloatArray | float = 0.0) -> Point:
        farther = np.where(self.newcomer.any(axis=1) & (z == self.z_end), farther, 0.0)
        exponent = z[:, None] + self.log_gap
        log_growth = np.logaddexp(0.0, exponent)
        lost = (self.old * np.expm1(-log_growth)).sum(axis=1)
        mass = (self.old * np.exp(-log_growth)).sum(axis=1)
        # Each keeps its digits where the other loses them.
        log_mass = np.log1p(lost, out=np.log(mass), where=lost > -0.5)
        log_ratio = np.minimum(-log_growth - log_mass[:, None], LOG_MAX)
        change = self.old * np.expm1(log_ratio)
        tilted = self.old * np.exp(log_ratio)
        stay, leave = np.exp(-farther)[:, None], -np.expm1(-farther)[:, None]
        share = np.exp(exponent - log_growth)
        mean_share = (self.old * share).sum(axis=1, keepdims=True)
        return Point(
            # An action that underflowed to zero would have an infinite KL.
            policy=np.where(self.old > 0, np.maximum(stay * tilted, TINY), np.where(self.newcomer, leave, 0.0)),
            # The changes sum to zero: what is added here and taken away below makes each action's part as small as the sum.
            kl=(change - self.old * log_ratio).sum(axis=1) + farther,
            kl_slope=np.where(farther > 0, 1.0, -(change * (share - mean_share)).sum(axis=1)),
            log_multiplier=self.log_scale - z - log_mass - farther,
            log_multiplier_slope=np.where(farther > 0, -1.0, (tilted * share).sum(axis=1) - 1.0),
        )

    def with_kl(self, kl: float) -> Point:
        """Where this is the KL; less in states whose actions are worth the same, as there is nothing to spend it on."""

        def excess(z: FloatArray) -> tuple[FloatArray, FloatArray]:
            at = self.at(z)
            positive = np.maximum(at.kl, TINY)
            return np.log(positive) - math.log(kl), np.where(at.kl > TINY, at.kl_slope / positive, 0.0)

        # Logarithms of ratios in [0, log(1 + exp(z))] make a KL of at most exp(2 z) / 8, by Hoeffding's lemma.
        low = min(math.log(8 * kl) / 2, 0.0)
        z = root(excess, np.full_like(self.z_end, low), self.z_end)
        return self.at(z, np.maximum(kl - self.at(z).kl, 0.0))

    def with_multiplier(self, log_multiplier: float) -> Point:
        """Where this is log lambda; more than it in states whose actions are worth the same."""

        def excess(z: FloatArray) -> tuple[FloatArray, FloatArray]:
            at = self.at(z)
            return log_multiplier - at.log_multiplier, -at.log_multiplier_slope

        z = root(excess, np.minimum(self.log_scale - log_multiplier, self.z_end), self.z_end)
        return self.at(z, np.maximum(self.at(z).log_multiplier - log_multiplier, 0.0))


def root(function: Callable[[FloatArray], tuple[FloatArray, FloatArray]], low: FloatArray, high: FloatArray) -> FloatArray:
    """
    Where increasing functions are zero: Newton's method from below, halving the bracket where it would leave it.

    :param function: x -> values and slopes, all of shape (n,)
    :param low: no root is below; shape (n,)
    :param high: the result where a function is still negative there; shape (n,)
    """
    low = np.where(function(high)[0] < 0, high, low)
    x = low
    for _ in range(200):
        value, slope = function(x)
        low, high = np.where(value < 0, x, low), np.where(value < 0, high, x)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            newton = x - value / slope
        found = np.fmin(np.abs(newton - x), high - low) <= ROOT_PRECISION * np.maximum(1.0, np.abs(x))
        if found.all():
            break
        inside = (low < newton) & (newton < high)
        x = np.where(found, x, np.where(inside, newton, (low + high) / 2))
    return x


def greedy(advantages: FloatArray) -> FloatArray:
    """The policy that takes the best action, the first of several."""
    return np.asarray(np.eye(advantages.shape[1])[advantages.argmax(axis=1)])
