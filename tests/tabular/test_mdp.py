"""Exact evaluation, and MDPs made from Gymnasium's tables."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings

from sb3_trpo_plus.tabular import FiniteMDP, evaluate, expected_return, visitation
from tests.tabular.mdps import TOY_TEXT, discounted_powers, distributions, mdps, optimal_values, scale, toy_text


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


def test_environment_without_a_table_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="env is CartPole-v1, which has no P and no initial_state_distrib"):
        FiniteMDP.from_gymnasium("CartPole-v1", 0.9)
