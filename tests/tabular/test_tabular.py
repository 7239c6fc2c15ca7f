"""The exact algorithms on finite MDPs: identities and bounds that hold for all of them, and independent solutions."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from sb3_trpo_plus import tabular
from sb3_trpo_plus.tabular import (
    FiniteMDP,
    FloatArray,
    algorithm_1,
    conservative_policy_iteration,
    evaluate,
    expected_return,
    kl_divergence,
    lower_bound,
    penalty_coefficient,
    surrogate,
    trust_region,
    visitation,
)

TOY_TEXT = ("FrozenLake-v1", "CliffWalking-v1", "Taxi")
SEEDS = st.integers(0, 2**32 - 1)
GAMMAS = st.sampled_from([0.0, 1e-9, 0.1, 0.5, 0.9, 0.99]) | st.floats(0.0, 0.99)


def distributions(generator: np.random.Generator, *shape: int) -> FloatArray:
    """Of any sort along the last axis: smooth, deterministic, with zeros, or nearly deterministic."""
    smooth = generator.dirichlet(np.ones(shape[-1]), shape[:-1])
    kind = generator.integers(4)
    if kind == 0:
        return smooth
    if kind == 1:
        return np.eye(shape[-1])[generator.integers(shape[-1], size=shape[:-1])]
    weights = smooth**20 if kind == 2 else smooth * (generator.random(shape) < 0.5)
    weights[..., 0] += weights.sum(axis=-1) == 0
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


@st.composite
def mdps(draw: st.DrawFn) -> tuple[FiniteMDP, np.random.Generator]:
    """With states that are never visited, ties between actions, and no rewards at all among them."""
    generator = np.random.default_rng(draw(SEEDS))
    n_states, n_actions = draw(st.integers(2, 8)), draw(st.integers(2, 4))
    rewards = generator.standard_normal((n_states, n_actions)) * draw(st.sampled_from([0.0, 1e-6, 1.0, 1e6]))
    transitions, initial = distributions(generator, n_states, n_actions, n_states), distributions(generator, n_states)
    return FiniteMDP(transitions, np.round(rewards) if draw(st.booleans()) else rewards, initial, draw(GAMMAS)), generator


def scale(mdp: FiniteMDP) -> float:
    """No return of any policy is larger."""
    return float(np.abs(mdp.rewards).max()) / (1 - mdp.gamma)


def optimal_values(mdp: FiniteMDP) -> FloatArray:
    """Value iteration."""
    values = np.zeros(mdp.n_states)
    for _ in range(10_000):
        before, values = values, (mdp.rewards + mdp.gamma * mdp.transitions @ values).max(axis=1)
        if np.abs(values - before).max() <= 1e-13 * np.abs(values).max():
            return values
    raise AssertionError("value iteration did not converge")


def discounted_powers(mdp: FiniteMDP, policy: FloatArray) -> FloatArray:
    """1 + M + M^2 + ... + M^4095 for M = gamma P_pi, which is (1 + M)(1 + M^2)(1 + M^4) ... (1 + M^2048)."""
    states, actions = range(mdp.n_states), range(mdp.n_actions)
    power = mdp.gamma * np.array([sum(policy[s, a] * mdp.transitions[s, a] for a in actions) for s in states])
    total = np.eye(mdp.n_states)
    for _ in range(12):
        total, power = total + power @ total, power @ power
    return total


def toy_text(name: str) -> str:
    """Taxi's version moved on between the Gymnasium releases that are supported."""
    return next(env_id for env_id in ("Taxi-v4", "Taxi-v3") if env_id in gym.registry) if name == "Taxi" else name


@settings(max_examples=100, deadline=None)
@given(mdps())
def test_evaluation_is_the_sum_over_time(case: tuple[FiniteMDP, np.random.Generator]) -> None:
    mdp, generator = case
    policy = distributions(generator, mdp.n_states, mdp.n_actions)
    values = discounted_powers(mdp, policy) @ (policy * mdp.rewards).sum(axis=1)
    q_values = mdp.rewards + mdp.gamma * np.tensordot(mdp.transitions, values, 1)
    found, tolerance = evaluate(mdp, policy), 1e-11 * scale(mdp)
    np.testing.assert_allclose(found.values, values, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.q_values, q_values, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.advantages, q_values - values[:, None], rtol=0, atol=tolerance)
    assert expected_return(mdp, policy) == pytest.approx(mdp.initial @ values, rel=0, abs=tolerance)


@settings(max_examples=100, deadline=None)
@given(mdps())
def test_visitation_is_the_sum_over_time(case: tuple[FiniteMDP, np.random.Generator]) -> None:
    mdp, generator = case
    policy = distributions(generator, mdp.n_states, mdp.n_actions)
    rho = visitation(mdp, policy)
    np.testing.assert_allclose(rho, mdp.initial @ discounted_powers(mdp, policy), rtol=0, atol=1e-11 / (1 - mdp.gamma))
    assert rho.sum() == pytest.approx(1 / (1 - mdp.gamma))


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
    at = tabular._Path.of(old, advantages).with_kl(limit)
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
    at = tabular._Path.of(old, advantages).with_kl(limit)
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


@settings(max_examples=40, deadline=None)
@given(mdps())
def test_algorithm_1_finds_the_best_maximum_of_the_kl(case: tuple[FiniteMDP, np.random.Generator]) -> None:
    """Against the inner solution at a dense grid of limits."""
    mdp, generator = case
    old = distributions(generator, mdp.n_states, mdp.n_actions)
    (iteration,) = algorithm_1(mdp, old, 1)
    path = tabular._Path.of(old, evaluate(mdp, old).advantages)
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


@pytest.mark.parametrize("name", TOY_TEXT)
def test_toy_text_backups_are_those_of_the_table(name: str) -> None:
    """Value iteration on the MDP against value iteration on P itself, which stops at ``terminated``."""
    env = gym.make(toy_text(name))
    mdp = FiniteMDP.from_gymnasium(env, 0.8)
    table = env.unwrapped.P  # type: ignore[attr-defined]
    assert mdp.n_states == len(table) + 1
    values = np.zeros(len(table))
    for _ in range(130):
        values = np.array(
            [
                max(
                    sum(p * (reward + 0.8 * (not end) * values[successor]) for p, successor, reward, end in outcomes)
                    for outcomes in table[state].values()
                )
                for state in range(len(table))
            ]
        )
    optimal = optimal_values(mdp)
    np.testing.assert_allclose(optimal[:-1], values, rtol=0, atol=1e-10 * max(1.0, np.abs(values).max()))
    assert optimal[-1] == 0.0
    np.testing.assert_array_equal(mdp.initial[:-1], env.unwrapped.initial_state_distrib)  # type: ignore[attr-defined]


def test_return_on_frozen_lake_is_that_of_played_episodes() -> None:
    """The optimal policy, within four standard errors; without the time limit, which the MDP does not have."""
    env = gym.make("FrozenLake-v1").unwrapped
    mdp = FiniteMDP.from_gymnasium(env, 0.95)
    q_values = mdp.rewards + mdp.gamma * mdp.transitions @ optimal_values(mdp)
    actions = q_values.argmax(axis=1)
    returns = []
    for episode in range(1000):
        state, _ = env.reset(seed=0 if episode == 0 else None)
        discount, total, done = 1.0, 0.0, False
        while not done:
            state, reward, done, _, _ = env.step(int(actions[state]))
            total, discount = total + discount * float(reward), discount * 0.95
        returns.append(total)
    error = np.std(returns) / np.sqrt(len(returns))
    assert 0 < error < 0.02
    assert abs(np.mean(returns) - expected_return(mdp, np.eye(4)[actions])) <= 4 * error


def test_random_mdp_is_the_seeds() -> None:
    one, same, other = (FiniteMDP.random(4, 3, 0.9, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.transitions, same.transitions)
    np.testing.assert_array_equal(one.rewards, same.rewards)
    assert not np.array_equal(one.rewards, other.rewards)
    assert (one.n_states, one.n_actions) == (4, 3)


def test_arrays_are_copied() -> None:
    rewards = np.zeros((1, 1), dtype=np.float32)
    mdp = FiniteMDP(np.ones((1, 1, 1)), rewards, np.ones(1), 0.5)
    rewards += 1
    assert mdp.rewards.tolist() == [[0.0]]
    assert mdp.rewards.dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"transitions": np.ones((2, 1, 3)) / 3}, r"transitions has the shape \(2, 1, 3\)"),
        ({"transitions": np.ones((2, 1, 2))}, r"transitions\[0, 0\] is no distribution.* sum 2; give"),
        ({"transitions": np.array([[[1.5, -0.5]], [[1, 0]]])}, r"transitions\[0, 0\] .*smallest element is -0.5"),
        ({"rewards": np.zeros(2)}, r"rewards has the shape \(2,\): give one of shape \(2, 1\)"),
        ({"rewards": np.array([[0.0], [np.nan]])}, r"rewards\[1, 0\] is nan"),
        ({"initial": np.ones(3) / 3}, r"initial has the shape \(3,\): give one of shape \(2,\)"),
        ({"initial": np.array([np.nan, 1.0])}, "initial is no distribution"),
        ({"gamma": 1.0}, r"gamma is 1.0: give a discount factor in \[0, 1\)"),
        ({"gamma": -0.1}, "gamma is -0.1"),
        ({"gamma": np.nan}, "gamma is nan"),
    ],
)
def test_invalid_mdps_are_refused_by_name(arguments: dict[str, object], words: str) -> None:
    valid: dict[str, object] = {
        "transitions": np.ones((2, 1, 2)) / 2,
        "rewards": np.zeros((2, 1)),
        "initial": np.ones(2) / 2,
        "gamma": 0.9,
    }
    FiniteMDP(**valid)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        FiniteMDP(**{**valid, **arguments})  # type: ignore[arg-type]


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


def test_environment_without_a_table_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="env is CartPole-v1, which has no P and no initial_state_distrib"):
        FiniteMDP.from_gymnasium("CartPole-v1", 0.9)
