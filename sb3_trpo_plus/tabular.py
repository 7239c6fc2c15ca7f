"""
The exact algorithms behind TRPO, on finite Markov decision processes whose transition probabilities are known.

Policies are float64 arrays of shape (S, A), for S states and A actions, with the probabilities of a state's actions along a
row. Zeros are allowed.

Sources: Schulman et al., "Trust Region Policy Optimization", 2015, sections 2 to 4, whose equation numbers are used below;
Kakade and Langford, "Approximately optimal approximate reinforcement learning", 2002.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

SUMS_TO_ONE = 1e-10
# Of the machine's precision, for what may be no more than the rounding of a linear solve.
ROUNDING = 10 * float(np.finfo(np.float64).eps)
TINY = float(np.finfo(np.float64).tiny)
LOG_MAX = 709.0
SMALLEST_KL = 1e-20
ROOT_PRECISION = 1e-13
# exp(-Z_MAX) is zero, so nothing lies beyond.
Z_MAX = 1500.0


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


def evaluate(mdp: FiniteMDP, policy: npt.ArrayLike) -> Evaluation:
    """
    Solve V = r_pi + gamma P_pi V.

    :param mdp: S states, A actions
    :param policy: shape (S, A)
    :return: values, Q-values and advantages
    :raises ValueError: when the policy's shape does not fit, or a row is no distribution
    """
    policy = _checked(mdp, policy)
    values = np.linalg.solve(np.eye(mdp.n_states) - mdp.gamma * _chain(mdp, policy), (policy * mdp.rewards).sum(axis=1))
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
    chain = _chain(mdp, _checked(mdp, policy))
    # Rounding can leave states that are never visited a hair below zero.
    return np.linalg.solve(np.eye(mdp.n_states) - mdp.gamma * chain.T, mdp.initial).clip(min=0.0)


def expected_return(mdp: FiniteMDP, policy: npt.ArrayLike) -> float:
    """
    eta: the expected discounted sum of rewards from the initial distribution.

    :param mdp: S states, A actions
    :param policy: shape (S, A)
    :return: eta
    :raises ValueError: when the policy's shape does not fit, or a row is no distribution
    """
    return float(mdp.initial @ evaluate(mdp, policy).values)


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
    return float(mdp.initial @ values + visitation(mdp, old) @ (_checked(mdp, new) * advantages).sum(axis=1))


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
    return _penalty_coefficient(mdp.gamma, evaluate(mdp, policy).advantages)


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
        best = _greedy(advantages)
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
        c = _penalty_coefficient(mdp.gamma, advantages)
        if c == 0:
            return _Update(_greedy(advantages), c)
        path = _Path.of(old, advantages)

        def excess_of_c(log_kl: FloatArray) -> tuple[FloatArray, FloatArray]:
            at = path.with_kl(math.exp(log_kl[0]))
            weights = rho * np.exp(at.log_multiplier)
            total = weights.sum()
            # States that stay behind this KL, for all their actions are worth the same, have no say.
            rate = np.divide(at.log_multiplier_slope, at.kl_slope, out=np.zeros_like(rho), where=at.kl_slope > 0)
            slope = -math.exp(log_kl[0]) * (weights * rate).sum() / total if total else 0.0
            return np.array([math.log(c) - _log(total)]), np.array([slope])

        log_kl = _root(excess_of_c, np.log([SMALLEST_KL]), np.log([Z_MAX]))
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
        path, weights = _Path.of(old, advantages), rho / rho.sum()

        def excess_of_delta(minus_log_multiplier: FloatArray) -> tuple[FloatArray, FloatArray]:
            at = path.with_multiplier(-minus_log_multiplier[0])
            mean_kl = weights @ at.kl
            rate = np.divide(at.kl_slope, -at.log_multiplier_slope, out=np.zeros_like(rho), where=at.log_multiplier_slope < 0)
            slope = weights @ rate / mean_kl if mean_kl else 0.0
            return np.array([_log(mean_kl) - math.log(delta)]), np.array([slope])

        # With so large a multiplier no state's KL is above delta, by the same inequality as in with_kl.
        low = -path.log_scale.max() - math.log1p(max(1.0, (8 * delta) ** -0.5))
        minus_log_multiplier = _root(excess_of_delta, np.array([low]), np.array([low + Z_MAX]))
        at = path.with_multiplier(-minus_log_multiplier[0])
        return _Update(at.policy, _penalty_coefficient(mdp.gamma, advantages))

    return _iterate(mdp, policy, n_iterations, update)


class _Update(NamedTuple):
    policy: FloatArray
    penalty: float
    alpha: float | None = None


def _iterate(
    mdp: FiniteMDP, policy: npt.ArrayLike, n_iterations: int, update: Callable[[FloatArray, FloatArray, FloatArray], _Update]
) -> list[Iteration]:
    old = _checked(mdp, policy)
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


class _Point(NamedTuple):
    """A point of each state's path; all but the policy have the shape (S,), and slopes are derivatives by the position."""

    policy: FloatArray
    kl: FloatArray
    kl_slope: FloatArray
    log_multiplier: FloatArray
    log_multiplier_slope: FloatArray


@dataclass(frozen=True, eq=False)
class _Path:
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
    def of(cls, old: FloatArray, advantages: FloatArray) -> _Path:
        taken = old > 0
        top = np.where(taken, advantages, -np.inf).max(axis=1, keepdims=True)
        ahead = np.where(taken, 0.0, advantages - top).max(axis=1, keepdims=True).clip(min=0.0)
        gap = np.where(taken, top - advantages, 0.0)
        scale = np.maximum(gap.max(axis=1, keepdims=True), ahead)
        scale[scale == 0] = 1.0
        newcomer = _greedy(np.where(taken, -np.inf, advantages)).astype(bool) & (ahead > 0)
        with np.errstate(divide="ignore"):
            z_end = np.minimum(-np.log(ahead / scale)[:, 0], Z_MAX)
            return cls(old, np.log(gap / scale), np.log(scale[:, 0]), newcomer, z_end)

    def at(self, z: FloatArray, farther: FloatArray | float = 0.0) -> _Point:
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
        return _Point(
            # An action that underflowed to zero would have an infinite KL.
            policy=np.where(self.old > 0, np.maximum(stay * tilted, TINY), np.where(self.newcomer, leave, 0.0)),
            # The changes sum to zero: what is added here and taken away below makes each action's part as small as the sum.
            kl=(change - self.old * log_ratio).sum(axis=1) + farther,
            kl_slope=np.where(farther > 0, 1.0, -(change * (share - mean_share)).sum(axis=1)),
            log_multiplier=self.log_scale - z - log_mass - farther,
            log_multiplier_slope=np.where(farther > 0, -1.0, (tilted * share).sum(axis=1) - 1.0),
        )

    def with_kl(self, kl: float) -> _Point:
        """Where this is the KL; less in states whose actions are worth the same, as there is nothing to spend it on."""

        def excess(z: FloatArray) -> tuple[FloatArray, FloatArray]:
            at = self.at(z)
            positive = np.maximum(at.kl, TINY)
            return np.log(positive) - math.log(kl), np.where(at.kl > TINY, at.kl_slope / positive, 0.0)

        # Logarithms of ratios in [0, log(1 + exp(z))] make a KL of at most exp(2 z) / 8, by Hoeffding's lemma.
        low = min(math.log(8 * kl) / 2, 0.0)
        z = _root(excess, np.full_like(self.z_end, low), self.z_end)
        return self.at(z, np.maximum(kl - self.at(z).kl, 0.0))

    def with_multiplier(self, log_multiplier: float) -> _Point:
        """Where this is log lambda; more than it in states whose actions are worth the same."""

        def excess(z: FloatArray) -> tuple[FloatArray, FloatArray]:
            at = self.at(z)
            return log_multiplier - at.log_multiplier, -at.log_multiplier_slope

        z = _root(excess, np.minimum(self.log_scale - log_multiplier, self.z_end), self.z_end)
        return self.at(z, np.maximum(self.at(z).log_multiplier - log_multiplier, 0.0))


def _root(function: Callable[[FloatArray], tuple[FloatArray, FloatArray]], low: FloatArray, high: FloatArray) -> FloatArray:
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


def _log(number: float) -> float:
    return math.log(number) if number > 0 else -math.inf


def _greedy(advantages: FloatArray) -> FloatArray:
    """The policy that takes the best action, the first of several."""
    return np.asarray(np.eye(advantages.shape[1])[advantages.argmax(axis=1)])


def _penalty_coefficient(gamma: float, advantages: FloatArray) -> float:
    return 4 * float(np.abs(advantages).max()) * gamma / (1 - gamma) ** 2


def _chain(mdp: FiniteMDP, policy: FloatArray) -> FloatArray:
    """P_pi(s'|s), shape (S, S)."""
    return np.asarray(np.einsum("sa,sat->st", policy, mdp.transitions), dtype=np.float64)


def _checked(mdp: FiniteMDP, policy: npt.ArrayLike) -> FloatArray:
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
