"""Registration of the algorithms with RL Zoo, and the patches of RL Zoo that this takes."""

import importlib

from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo_plus.algorithms.npg import NPG
from sb3_trpo_plus.algorithms.ppo_penalty import PPOPenalty
from sb3_trpo_plus.algorithms.trpo import TRPO
from sb3_trpo_plus.algorithms.vine import VineTRPO
from sb3_trpo_plus.files.atomic import save_vec_normalize
from sb3_trpo_plus.files.statistics import load_vec_normalize
from sb3_trpo_plus.zoo.manager import adapt
from sb3_trpo_plus.zoo.search_spaces import SEARCH

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"trpo": TRPO, "npg": NPG, "trpo_vine": VineTRPO, "ppo_penalty": PPOPenalty}


def register() -> None:
    """Register the algorithms, their hyperparameter files and search spaces with RL Zoo. Calling it again changes nothing."""
    for algo, algorithm in ALGORITHMS.items():
        ALGOS[algo] = algorithm
        HYPERPARAMS_SAMPLER[algo], HYPERPARAMS_CONVERTER[algo] = SEARCH[algo]
    # RL Zoo loads statistics by VecNormalize.load, which can't read those saved with Gym's spaces, and saves them by
    # VecNormalize.save, which leaves half a file where it is killed.
    setattr(VecNormalize, "load", staticmethod(load_vec_normalize))  # noqa: B010
    setattr(VecNormalize, "save", save_vec_normalize)  # noqa: B010
    # Not there yet where RL Zoo imports custom_envs from this very module; RL Zoo's commands import it later than that.
    manager = getattr(importlib.import_module("rl_zoo3.exp_manager"), "ExperimentManager", None)
    if manager is not None:
        adapt(manager, ALGORITHMS)
