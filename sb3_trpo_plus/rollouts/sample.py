"""The part of a rollout that an update of the policy sees."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_trpo_plus.policies.distributions import entropy
from sb3_trpo_plus.policies.observations import select

RandomState = dict[str, Any]


def random_state() -> RandomState:
    """Of NumPy's global generator, by which SB3's buffers permute what they give: it makes the same sample again."""
    return np.random.get_state(legacy=False)  # noqa: NPY002


def normalized(advantages: th.Tensor, to_unit_deviation: bool) -> th.Tensor:
    """
    Advantages with mean 0 and standard deviation 1 if that is asked for; zeros where they are all equal.

    :param advantages: any shape
    :param to_unit_deviation: False: they stay as they are, unless they are equal
    :return: the same shape
    """
    spread = advantages.max() - advantages.min()
    if advantages.numel() > 1 and spread <= 1e-6 * advantages.abs().max():
        # Normalising them would turn rounding errors into advantages of size one.
        return th.zeros_like(advantages)
    if to_unit_deviation:
        return (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return advantages


@dataclass(frozen=True)
class Sample:
    """
    What the policy's update sees of a rollout.

    :param observations: tensor or dict of tensors, the states along the first dimension
    :param actions: taken there, as the distribution's ``log_prob`` takes them
    :param old_log_prob: of the actions, when they were taken, shape (states,)
    :param advantages: of the actions, shape (states,), normalised if that is asked for; all 0 where they were all equal
    :param raw_advantages: before that
    """

    observations: PyTorchObs
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    raw_advantages: th.Tensor

    def at(self, index: slice | th.Tensor) -> "Sample":
        """Some of the states."""
        observations = select(self.observations, index)
        rest = (self.actions, self.old_log_prob, self.advantages, self.raw_advantages)
        return Sample(observations, *(tensor[index] for tensor in rest))

    def expected_advantage(self, distribution: Distribution, advantages: th.Tensor) -> th.Tensor:
        """E[ pi_theta(a|s) / pi_old(a|s) * A(s,a) ]: the single-path estimator (TRPO paper, equation 14 with q = pi_old)."""
        return (th.exp(distribution.log_prob(self.actions) - self.old_log_prob) * advantages).mean()

    def entropy(self, distribution: Distribution) -> th.Tensor:
        """Mean over the states, of the whole action, nats."""
        return entropy(distribution, distribution.log_prob(self.actions), self.old_log_prob)
