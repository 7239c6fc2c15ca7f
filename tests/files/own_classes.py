"""Classes of a user's, in a module that a script runs and another imports."""

import sys
from typing import Any

import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_trpo_plus import TRPO


class Mine(FlattenExtractor):
    pass


class Steep(th.nn.ReLU):
    pass


def falling(progress_remaining: float) -> float:
    return 1e-3 * progress_remaining


def agent() -> Any:
    policy_kwargs = {"features_extractor_class": Mine, "activation_fn": Steep, "net_arch": [4]}
    return TRPO("MlpPolicy", "CartPole-v1", learning_rate=falling, policy_kwargs=policy_kwargs, device="cpu")


if __name__ == "__main__":
    agent().save(sys.argv[1])
