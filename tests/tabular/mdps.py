"""Finite MDPs and policies of every sort, and what they are worth by independent ways."""

import gymnasium as gym
import numpy as np
from hypothesis import strategies as st

from sb3_trpo_plus.tabular import FiniteMDP
from sb3_trpo_plus.tabular.mdp import FloatArray

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
