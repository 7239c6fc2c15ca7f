"""Identities and bounds that hold for all finite MDPs."""

import numpy as np
import pytest
from hypothesis import given, settings

from sb3_trpo_plus.tabular import (
    FiniteMDP,
    evaluate,
    expected_return,
    kl_divergence,
    lower_bound,
    penalty_coefficient,
    surrogate,
    visitation,
)
from tests.tabular.mdps import distributions, mdps, scale


@settings(max_examples=100, deadline=None)
@given(mdps())
def test_performance_difference_identity(case: tuple[FiniteMDP, np.random.Generator]) -> None:
    """eta(new) - eta(old) = sum_s rho_new(s) sum_a new(a|s) A_old(s, a), equation 2; L has rho_old in its place."""
    mdp, generator = case
    old, new = (distributions(generator, mdp.n_states, mdp.n_actions) for _ in range(2))
    gains = (new * evaluate(mdp, old).advantages).sum(axis=1)
    tolerance = 1e-10 * scale(mdp)
    difference = expected_return(mdp, new) - expected_return(mdp, old)
    assert difference == pytest.approx(visitation(mdp, new) @ gains, rel=0, abs=tolerance)
    assert surrogate(mdp, old, new) - expected_return(mdp, old) == pytest.approx(
        visitation(mdp, old) @ gains, rel=0, abs=tolerance
    )


@settings(max_examples=100, deadline=None)
@given(mdps())
def test_surrogate_matches_the_return_to_first_order(case: tuple[FiniteMDP, np.random.Generator]) -> None:
    """
    The same value at the old policy, and the same slope in any direction (equation 4): what the two differ by after a step
    is of the second order, so it is below that order's bound, and 10,000 times as much after a step 100 times as long.
    """
    mdp, generator = case
    old, other = (distributions(generator, mdp.n_states, mdp.n_actions) for _ in range(2))
    assert surrogate(mdp, old, old) == pytest.approx(expected_return(mdp, old), rel=0, abs=1e-11 * scale(mdp))

    def difference(step: float) -> float:
        new = (1 - step) * old + step * other
        return expected_return(mdp, new) - surrogate(mdp, old, new)

    step = 1e-4 * (1 - mdp.gamma)
    # 4 gamma max |A| step^2 / (1 - gamma)^2, with |A| <= 2 scale, and rounding.
    assert abs(difference(step)) <= (8e-8 + 1e-11) * scale(mdp)
    assert difference(100 * step) == pytest.approx(1e4 * difference(step), rel=0.05, abs=1e-7 * scale(mdp))


@settings(max_examples=100, deadline=None)
@given(mdps())
def test_return_is_above_the_bounds_for_any_pair_of_policies(case: tuple[FiniteMDP, np.random.Generator]) -> None:
    """Equation 9, and equation 6 for a mixture, whose eps is of the policy that is mixed in."""
    mdp, generator = case
    old, new = (distributions(generator, mdp.n_states, mdp.n_actions) for _ in range(2))
    for share in (0.01, 0.3, 1.0):
        mixed = (1 - share) * old + share * new
        eta, rounding = expected_return(mdp, mixed), 1e-11 * scale(mdp)
        assert eta >= lower_bound(mdp, old, mixed) - rounding
        eps = np.abs((new * evaluate(mdp, old).advantages).sum(axis=1)).max()
        penalty = 2 * eps * mdp.gamma * share**2 / (1 - mdp.gamma) ** 2
        assert eta >= surrogate(mdp, old, mixed) - penalty - rounding


def test_lower_bound_is_equation_9() -> None:
    mdp = FiniteMDP.random(4, 3, 0.9, seed=0)
    old, new = np.random.default_rng(0).dirichlet(np.ones(3), (2, 4))
    kl = (old * np.log(old / new)).sum(axis=1)
    np.testing.assert_allclose(kl_divergence(old, new), kl)
    c = 4 * np.abs(evaluate(mdp, old).advantages).max() * 0.9 / 0.1**2
    assert penalty_coefficient(mdp, old) == pytest.approx(c)
    assert lower_bound(mdp, old, new) == pytest.approx(surrogate(mdp, old, new) - c * kl.max())


def test_kl_divergence_of_zeros_and_of_tiny_changes() -> None:
    old = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.75, 0.0]])
    new = np.array([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.25 + 2.0**-30, 0.75 - 2.0**-30, 0.0]])
    # The last is of second order: x^2 / 2 (1 / 0.25 + 1 / 0.75), and x / 0.25 of that the third.
    expected = [0.5 * np.log(2), np.log(2), np.inf, 2.0**-61 * (4 + 4 / 3)]
    np.testing.assert_allclose(kl_divergence(old, new), expected, rtol=1e-7)
