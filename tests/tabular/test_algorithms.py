"""The exact algorithms: their promises, their fixed points, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_trpo_plus.tabular import (
    FiniteMDP,
    algorithm_1,
    conservative_policy_iteration,
    evaluate,
    expected_return,
    kl_divergence,
    lower_bound,
    surrogate,
    trust_region,
    visitation,
)
from sb3_trpo_plus.tabular.path import Path
from tests.tabular.mdps import TOY_TEXT, distributions, mdps, optimal_values, scale, toy_text


@settings(max_examples=80, deadline=None)
@given(mdps(), st.sampled_from([conservative_policy_iteration, algorithm_1]))
def test_return_never_decreases_and_keeps_the_promise(case: tuple[FiniteMDP, np.random.Generator], algorithm: object) -> None:
    """eta(old) <= bound <= eta(new): the bound was maximised over choices that include no change."""
    mdp, generator = case
    policy = distributions(generator, mdp.n_states, mdp.n_actions)
    last, rounding = expected_return(mdp, policy), 1e-12 * scale(mdp)
    for iteration in algorithm(mdp, policy, 4):  # type: ignore[operator]
        assert iteration.expected_return == pytest.approx(expected_return(mdp, iteration.policy), rel=0, abs=rounding)
        assert last - rounding <= iteration.lower_bound <= iteration.expected_return + rounding
        if algorithm is algorithm_1:
            assert iteration.lower_bound == pytest.approx(lower_bound(mdp, policy, iteration.policy), rel=0, abs=rounding)
        policy, last = iteration.policy, iteration.expected_return


@settings(max_examples=100, deadline=None)
@given(mdps())
def test_conservative_policy_iteration_takes_the_best_alpha(case: tuple[FiniteMDP, np.random.Generator]) -> None:
    mdp, generator = case
    old = distributions(generator, mdp.n_states, mdp.n_actions)
    (iteration,) = conservative_policy_iteration(mdp, old, 1)
    advantages = evaluate(mdp, old).advantages
    best = np.eye(mdp.n_actions)[advantages.argmax(axis=1)]
    penalty = 2 * advantages.max(axis=1).max() * mdp.gamma / (1 - mdp.gamma) ** 2
    assert iteration.alpha is not None
    alphas = [*np.linspace(0, 1, 11), 0.9 * iteration.alpha, min(1.0, 1.1 * iteration.alpha)]
    bounds = [surrogate(mdp, old, (1 - alpha) * old + alpha * best) - penalty * alpha**2 for alpha in alphas]
    assert iteration.lower_bound >= max(bounds) - 1e-11 * scale(mdp)
    np.testing.assert_allclose(iteration.policy, (1 - iteration.alpha) * old + iteration.alpha * best, rtol=0, atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(mdps())
def test_algorithm_1_finds_the_best_maximum_of_the_kl(case: tuple[FiniteMDP, np.random.Generator]) -> None:
    """Against the inner solution at a dense grid of limits."""
    mdp, generator = case
    old = distributions(generator, mdp.n_states, mdp.n_actions)
    (iteration,) = algorithm_1(mdp, old, 1)
    path = Path.of(old, evaluate(mdp, old).advantages)
    best = max(lower_bound(mdp, old, path.with_kl(limit).policy) for limit in np.logspace(-15, 1, 33))
    assert iteration.lower_bound >= best - 1e-12 * scale(mdp)


@settings(max_examples=40, deadline=None)
@given(mdps(), st.sampled_from([1e-6, 1e-2, 1.0]))
def test_trust_region_is_tight_and_has_one_multiplier(case: tuple[FiniteMDP, np.random.Generator], delta: float) -> None:
    """The conditions of optimality: mean KL = delta, and all states gain at the same rate by a little more of it."""
    mdp, generator = case
    old = generator.dirichlet(np.ones(mdp.n_actions), mdp.n_states)
    (iteration,) = trust_region(mdp, old, 1, delta)
    rho, advantages = visitation(mdp, old), evaluate(mdp, old).advantages
    weights = rho / rho.sum()
    if np.array_equal(iteration.policy, old):
        assert weights @ np.ptp(advantages, axis=1) <= 1e-9 * scale(mdp)
        return
    assert surrogate(mdp, old, iteration.policy) > expected_return(mdp, old)
    assert weights @ kl_divergence(old, iteration.policy) == pytest.approx(delta, rel=1e-6)
    # multiplier = (nu - A_a) p_a / old_a, so the differences of old_a / p_a are those of A_a over it.
    ratios = old / iteration.policy
    worst, best = advantages.argmin(axis=1), advantages.argmax(axis=1)
    states = np.arange(mdp.n_states)
    spread = ratios[states, worst] - ratios[states, best]
    visited = np.ptp(advantages, axis=1) > 1e-6 * np.ptp(advantages)
    multipliers = (np.ptp(advantages, axis=1) / spread)[visited]
    np.testing.assert_allclose(multipliers, multipliers[0], rtol=1e-4)


@pytest.mark.parametrize("name", TOY_TEXT)
def test_optimal_policies_stay(name: str) -> None:
    """CPI's eps is zero there, or a rounding error; no algorithm may run after that."""
    mdp = FiniteMDP.from_gymnasium(toy_text(name), 0.9)
    q_values = mdp.rewards + mdp.gamma * mdp.transitions @ optimal_values(mdp)
    policy = np.eye(mdp.n_actions)[q_values.argmax(axis=1)]
    for iterations in (conservative_policy_iteration(mdp, policy, 2), algorithm_1(mdp, policy, 2)):
        for iteration in iterations:
            np.testing.assert_array_equal(iteration.policy, policy)
            assert iteration.max_kl == 0.0
            assert iteration.lower_bound == pytest.approx(iteration.expected_return)


def test_without_a_discounted_future_the_greedy_policy_is_found_at_once() -> None:
    mdp = FiniteMDP.random(6, 3, 0.0, seed=1)
    greedy = np.eye(3)[mdp.rewards.argmax(axis=1)]
    for (iteration,) in (
        conservative_policy_iteration(mdp, mdp.uniform_policy(), 1),
        algorithm_1(mdp, mdp.uniform_policy(), 1),
    ):
        np.testing.assert_array_equal(iteration.policy, greedy)
        assert iteration.penalty == 0.0
        assert iteration.lower_bound == pytest.approx(mdp.initial @ mdp.rewards.max(axis=1))
        assert iteration.expected_return == pytest.approx(iteration.lower_bound)


def test_without_rewards_nothing_changes() -> None:
    mdp = FiniteMDP(FiniteMDP.random(3, 2, 0.5, seed=0).transitions, np.zeros((3, 2)), np.ones(3) / 3, 0.5)
    policy = np.array([[0.2, 0.8], [1.0, 0.0], [0.5, 0.5]])
    for algorithm in (conservative_policy_iteration, algorithm_1, lambda *of: trust_region(*of, delta=0.1)):
        (iteration,) = algorithm(mdp, policy, 1)
        np.testing.assert_array_equal(iteration.policy, policy)
        assert (iteration.expected_return, iteration.lower_bound, iteration.max_kl) == (0.0, 0.0, 0.0)


def test_algorithm_1_can_end_at_a_deterministic_policy_that_conservative_policy_iteration_improves() -> None:
    """Giving an action a first share x costs C x by the KL, and C x^2 by conservative policy iteration's bound."""
    mdp = FiniteMDP.random(5, 3, 0.9, seed=0)
    policy = np.eye(3)[mdp.rewards.argmin(axis=1)]
    (conservative,), (theory,) = conservative_policy_iteration(mdp, policy, 1), algorithm_1(mdp, policy, 1)
    assert conservative.expected_return > expected_return(mdp, policy)
    np.testing.assert_array_equal(theory.policy, policy)


def test_algorithms_approach_the_optimum() -> None:
    mdp = FiniteMDP.random(5, 3, 0.5, seed=0)
    start, optimum = expected_return(mdp, mdp.uniform_policy()), mdp.initial @ optimal_values(mdp)
    for run in (
        conservative_policy_iteration(mdp, mdp.uniform_policy(), 100),
        algorithm_1(mdp, mdp.uniform_policy(), 100),
        trust_region(mdp, mdp.uniform_policy(), 100, 0.01),
    ):
        assert optimum - 0.1 * (optimum - start) <= run[-1].expected_return <= optimum + 1e-12
        assert len(run) == 100


def test_invalid_arguments_are_refused_by_name() -> None:
    mdp = FiniteMDP.random(2, 3, 0.5, seed=0)
    policy = mdp.uniform_policy()
    with pytest.raises(ValueError, match=r"policy has the shape \(3, 2\): give one of shape \(2, 3\)"):
        evaluate(mdp, policy.T)
    with pytest.raises(ValueError, match=r"policy\[0\] is no distribution"):
        visitation(mdp, 2 * policy)
    with pytest.raises(ValueError, match=r"policy\[0\] is no distribution"):
        surrogate(mdp, policy, policy - 0.1)
    with pytest.raises(ValueError, match="delta is 0"):
        trust_region(mdp, policy, 1, 0.0)
    with pytest.raises(ValueError, match="n_actions is 0"):
        FiniteMDP.random(2, 0, 0.5, seed=0)
