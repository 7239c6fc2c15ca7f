"""Finite Markov decision processes, and policies evaluated exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

SUMS_TO_ONE = 1e-10


@dataclass(frozen=True, eq=False)
class FiniteMDP:
    """
    A Markov decision process with S states and A actions, both finite. The arrays are copied, as float64.

    :param transitions: ``P(s'|s, a)``, shape (S, A, S)
    :param rewards: r(s, a), expected over s', shape (S, A), finite
    :param initial: distribution of the first state, shape (S,)
    :param gamma: discount factor in [0, 1)
    :raises ValueError: when a shape does not fit, a distribution is none, a reward is not finite, or gamma is out of range
    """

    transitions: FloatArray
    rewards: FloatArray
    initial: FloatArray
    gamma: float

    def __post_init__(self) -> None:
        for name in ("transitions", "rewards", "initial"):
            object.__setattr__(self, name, np.array(getattr(self, name), dtype=np.float64))
        shape = self.transitions.shape
        if len(shape) != 3 or shape[0] != shape[2] or 0 in shape:
            raise ValueError(f"transitions has the shape {shape}: give P(s'|s, a) in the shape (S, A, S), S and A at least 1")
        _check_shape("rewards", self.rewards, shape[:2])
        _check_shape("initial", self.initial, shape[:1])
        _check_distributions("transitions", self.transitions)
        _check_distributions("initial", self.initial)
        if not np.isfinite(self.rewards).all():
            at = tuple(np.argwhere(~np.isfinite(self.rewards))[0].tolist())
            raise ValueError(f"rewards{list(at)} is {self.rewards[at]}: give finite rewards")
        if not 0 <= self.gamma < 1:
            raise ValueError(f"gamma is {self.gamma}: give a discount factor in [0, 1), so that returns are finite")

    @property
    def n_states(self) -> int:
        """S"""
        return len(self.rewards)

    @property
    def n_actions(self) -> int:
        """A"""
        return len(self.rewards[0])

    @classmethod
    def from_gymnasium(cls, env: gym.Env[Any, Any] | str, gamma: float) -> FiniteMDP:
        """
        The MDP that a toy-text environment plays: FrozenLake, CliffWalking, Taxi.

        It has one state more than the environment, the last: there every episode ends up that terminates, and no reward is
        left to earn. The time limit of ``gym.make`` is no part of it.

        :param env: with the table ``env.unwrapped.P`` and ``env.unwrapped.initial_state_distrib``, or the id of one
        :param gamma: discount factor in [0, 1)
        :return: the MDP
        :raises ValueError: when the environment has no such table, or gamma is out of range
        """
        if isinstance(env, str):
            made = gym.make(env)
            try:
                return cls.from_gymnasium(made, gamma)
            finally:
                made.close()
        core: Any = env.unwrapped
        missing = [name for name in ("P", "initial_state_distrib") if not hasattr(core, name)]
        if missing:
            name = env.spec.id if env.spec else type(core).__name__
            raise ValueError(
                f"env is {name}, which has no {' and no '.join(missing)}: take one of Gymnasium's toy-text environments "
                "that have them (FrozenLake, CliffWalking, Taxi), or give FiniteMDP the arrays"
            )
        end, n_actions = len(core.P), len(core.P[0])
        transitions, rewards = np.zeros((end + 1, n_actions, end + 1)), np.zeros((end + 1, n_actions))
        for state in range(end):
            for action in range(n_actions):
                for probability, successor, reward, terminated in core.P[state][action]:
                    transitions[state, action, end if terminated else successor] += probability
                    rewards[state, action] += probability * reward
        transitions[end, :, end] = 1.0
        return cls(transitions, rewards, np.append(core.initial_state_distrib, 0.0), gamma)

    @classmethod
    def random(cls, n_states: int, n_actions: int, gamma: float, seed: int) -> FiniteMDP:
        """
        Distributions drawn uniformly (Dirichlet with ones), rewards from the standard normal distribution.

        :param n_states: S, at least 1
        :param n_actions: A, at least 1
        :param gamma: discount factor in [0, 1)
        :param seed: of the draw; the same seed gives the same MDP
        :return: the MDP
        :raises ValueError: when an argument is out of range
        """
        for name, number in (("n_states", n_states), ("n_actions", n_actions)):
            if number < 1:
                raise ValueError(f"{name} is {number}: give at least 1")
        generator = np.random.default_rng(seed)
        transitions = generator.dirichlet(np.ones(n_states), (n_states, n_actions))
        rewards = generator.standard_normal((n_states, n_actions))
        return cls(transitions, rewards, generator.dirichlet(np.ones(n_states)), gamma)

    def uniform_policy(self) -> FloatArray:
        """All actions alike, shape (S, A)."""
        return np.full((self.n_states, self.n_actions), 1 / self.n_actions)


class Evaluation(NamedTuple):
    """
    :param values: V(s), shape (S,)
    :param q_values: Q(s, a), shape (S, A)
    :param advantages: A(s, a) = Q(s, a) - V(s), shape (S, A)
    """

    values: FloatArray
    q_values: FloatArray
    advantages: FloatArray


def evaluate(mdp: FiniteMDP, policy: npt.ArrayLike) -> Evaluation:
    """
    Solve V = r_pi + gamma P_pi V.

    :param mdp: S states, A actions
    :param policy: shape (S, A)
    :return: values, Q-values and advantages
    :raises ValueError: when the policy's shape does not fit, or a row is no distribution
    """
    policy = checked(mdp, policy)
    values = np.linalg.solve(np.eye(mdp.n_states) - mdp.gamma * chain(mdp, policy), (policy * mdp.rewards).sum(axis=1))
    q_values = mdp.rewards + mdp.gamma * mdp.transitions @ values
    return Evaluation(values, q_values, q_values - values[:, None])


def visitation(mdp: FiniteMDP, policy: npt.ArrayLike) -> FloatArray:
    """
    The discounted visitation frequencies rho(s) = P(s_0 = s) + gamma P(s_1 = s) + gamma^2 P(s_2 = s) + ..., not normalised:
    they sum to 1 / (1 - gamma).

    :param mdp: S states, A actions
    :param policy: shape (S, A)
    :return: rho, shape (S,)
    :raises ValueError: when the policy's shape does not fit, or a row is no distribution
    """
    moves = chain(mdp, checked(mdp, policy))
    # Rounding can leave states that are never visited a hair below zero.
    return np.linalg.solve(np.eye(mdp.n_states) - mdp.gamma * moves.T, mdp.initial).clip(min=0.0)


def expected_return(mdp: FiniteMDP, policy: npt.ArrayLike) -> float:
    """
    eta: the expected discounted sum of rewards from the initial distribution.

    :param mdp: S states, A actions
    :param policy: shape (S, A)
    :return: eta
    :raises ValueError: when the policy's shape does not fit, or a row is no distribution
    """
    return float(mdp.initial @ evaluate(mdp, policy).values)


def chain(mdp: FiniteMDP, policy: FloatArray) -> FloatArray:
    """P_pi(s'|s), shape (S, S)."""
    return np.asarray(np.einsum("sa,sat->st", policy, mdp.transitions), dtype=np.float64)


def checked(mdp: FiniteMDP, policy: npt.ArrayLike) -> FloatArray:
    policy = np.asarray(policy, dtype=np.float64)
    _check_shape("policy", policy, mdp.rewards.shape)
    _check_distributions("policy", policy)
    return policy


def _check_shape(name: str, array: FloatArray, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise ValueError(f"{name} has the shape {array.shape}: give one of shape {expected}")


def _check_distributions(name: str, array: FloatArray) -> None:
    wrong = ~((array >= 0).all(axis=-1) & (np.abs(array.sum(axis=-1) - 1) <= SUMS_TO_ONE))
    if wrong.any():
        at = np.argwhere(wrong)[0].tolist() if wrong.ndim else []
        row = array[tuple(at)]
        raise ValueError(
            f"{name}{at or ''} is no distribution: its smallest element is {row.min():.6g} and its sum {row.sum():.12g}; give "
            "probabilities that are not negative, divided by their sum in double precision"
        )
