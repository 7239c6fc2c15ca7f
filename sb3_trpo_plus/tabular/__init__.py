"""
The exact algorithms behind TRPO, on finite Markov decision processes whose transition probabilities are known.

Policies are float64 arrays of shape (S, A), for S states and A actions, with the probabilities of a state's actions along a
row. Zeros are allowed.

Sources: Schulman et al., "Trust Region Policy Optimization", 2015, sections 2 to 4, whose equation numbers are used here;
Kakade and Langford, "Approximately optimal approximate reinforcement learning", 2002.
"""

from sb3_trpo_plus.tabular.algorithms import Iteration, algorithm_1, conservative_policy_iteration, trust_region
from sb3_trpo_plus.tabular.mdp import Evaluation, FiniteMDP, evaluate, expected_return, visitation
from sb3_trpo_plus.tabular.theory import kl_divergence, lower_bound, penalty_coefficient, surrogate

__all__ = [
    "Evaluation",
    "FiniteMDP",
    "Iteration",
    "algorithm_1",
    "conservative_policy_iteration",
    "evaluate",
    "expected_return",
    "kl_divergence",
    "lower_bound",
    "penalty_coefficient",
    "surrogate",
    "trust_region",
    "visitation",
]
