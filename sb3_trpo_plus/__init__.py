"""Trust-region policy optimisation for Stable-Baselines3."""

from importlib.metadata import version

from stable_baselines3.common.policies import ActorCriticCnnPolicy as CnnPolicy
from stable_baselines3.common.policies import ActorCriticPolicy as MlpPolicy
from stable_baselines3.common.policies import MultiInputActorCriticPolicy as MultiInputPolicy

from sb3_trpo_plus.algorithms.checkpoint import TrainingCheckpoint
from sb3_trpo_plus.algorithms.npg import NPG
from sb3_trpo_plus.algorithms.ppo_penalty import PPOPenalty
from sb3_trpo_plus.algorithms.trpo import TRPO
from sb3_trpo_plus.algorithms.vine import VineTRPO
from sb3_trpo_plus.files.atomic import save_vec_normalize
from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.statistics import load_vec_normalize

__version__ = version("sb3-trpo-plus")

__all__ = [
    "NPG",
    "TRPO",
    "CnnPolicy",
    "MlpPolicy",
    "ModelFileError",
    "MultiInputPolicy",
    "PPOPenalty",
    "TrainingCheckpoint",
    "UnsafeFileError",
    "VineTRPO",
    "load_vec_normalize",
    "save_vec_normalize",
]
