"""The policies that are best within a KL, beside a general solver's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from sb3_trpo_plus.tabular import kl_divergence
from sb3_trpo_plus.tabular.mdp import FloatArray
from sb3_trpo_plus.tabular.path import Path
from tests.tabular.mdps import SEEDS, distributions


def solve(advantages: FloatArray, old: FloatArray, limit: float) -> float:
    """One state's maximum of sum_a p_a A_a within KL(old || p) <= limit, by sequential quadratic programming."""
    kl = lambda p: limit - np.sum(np.where(old > 0, old * np.log(np.where(old > 0, old, 1.0) / p.clip(1e-12)), 0.0))  # noqa: E731
    result = minimize(
        lambda p: -p @ advantages,
        old,
        jac=lambda p: -advantages,
        bounds=[(1e-12, 1.0)] * len(old),
        constraints=[{"type": "ineq", "fun": kl}, {"type": "eq", "fun": lambda p: p.sum() - 1}],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    return -float(result.fun)


@pytest.mark.parametrize("limit", [1e-3, 0.1, 2.0])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_solution_within_a_kl_is_as_good_as_a_general_solvers(zeros: int, seed: int, limit: float) -> None:
    """With actions that the old policy never takes too; two zeros of three leave it deterministic."""
    generator = np.random.default_rng(seed)
    old, advantages = generator.dirichlet(np.ones(3 - zeros), 1), generator.standard_normal((1, 3))
    old = np.pad(old, ((0, 0), (0, zeros)))
    at = Path.of(old, advantages).with_kl(limit)
    assert at.policy.sum() == pytest.approx(1.0)
    assert kl_divergence(old, at.policy)[0] <= limit * (1 + 1e-9)
    assert at.policy[0] @ advantages[0] == pytest.approx(solve(advantages[0], old[0], limit), rel=1e-5, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 8), st.integers(2, 4), st.floats(-14, 1.5))
def test_solution_within_a_kl_meets_the_conditions_of_optimality(
    seed: int, n_states: int, n_actions: int, log_limit: float
) -> None:
    """
    No policy within the limit beats one that has KL = limit (or all there is to gain), and a multiplier with
    A_a + multiplier old_a / p_a <= nu for all actions, and equality where p_a > 0: the problem is concave.
    """
    generator = np.random.default_rng(seed)
    old, limit = distributions(generator, n_states, n_actions), 10**log_limit
    advantages = generator.standard_normal((n_states, n_actions))
    at = Path.of(old, advantages).with_kl(limit)
    multiplier = np.exp(at.log_multiplier)[:, None]
    kl = kl_divergence(old, at.policy)
    np.testing.assert_allclose(at.policy.sum(axis=1), 1.0, rtol=1e-12)
    assert (kl <= limit * (1 + 1e-4)).all()
    spent = np.abs(kl - limit) <= 1e-4 * limit
    done = at.policy[np.arange(n_states), advantages.argmax(axis=1)] >= 1 - 1e-12
    assert (spent | done).all()
    price = advantages + multiplier * old / np.where(old > 0, at.policy, 1.0)
    nu = (at.policy * price).sum(axis=1, keepdims=True)
    visible = at.policy > 1e-250
    np.testing.assert_allclose(np.where(visible, price, nu), np.broadcast_to(nu, price.shape), rtol=1e-6, atol=1e-6)
    assert (np.where(old > 0, nu, advantages) <= nu + 1e-9).all()
