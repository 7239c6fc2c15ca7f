"""The members of the family in small, for the tests of what they share."""

from typing import Any

import torch as th

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO
from sb3_trpo_plus.algorithms.base import KLControlled
from sb3_trpo_plus.trust_region.flat import flatten
from tests.conftest import DISTRIBUTIONS, parameters_of, random_env

MEMBERS: dict[str, tuple[type[KLControlled], dict[str, Any]]] = {
    "trpo": (TRPO, {}),
    "empirical": (TRPO, {"fisher": "empirical"}),
    "max": (TRPO, {"kl_constraint": "max", "target_kl": 0.1}),
    "npg": (NPG, {}),
    "npg fixed": (NPG, {"step_size": 0.1}),
    "adaptive": (PPOPenalty, {"n_epochs": 2}),
    "dual": (PPOPenalty, {"n_epochs": 2, "penalty": "dual"}),
    "vine": (VineTRPO, {"n_rollout_states": 16, "rollout_length": 5}),
    "vine with a critic": (VineTRPO, {"n_rollout_states": 16, "rollout_length": 5, "bootstrap": True, "n_actions": 2}),
}
# Of a VineTRPO by itself.
SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_rollout_states": 8, "seed": 0}


def make(member: str = "npg", name: str = "box", **kwargs: Any) -> Any:
    space, options = DISTRIBUTIONS[name]
    algorithm, own = MEMBERS[member]
    settings = {"n_steps": 64, "batch_size": 64, "n_critic_updates": 1, "seed": 0, **own, **options, **kwargs}
    return algorithm("MlpPolicy", random_env(space), **settings)


def actor_of(model: Any) -> th.Tensor:
    return flatten([value for name, value in parameters_of(model).items() if "value" not in name])
