"""The samples of a rollout that the policy update uses."""

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
    """State of NumPy's global generator, with which SB3's buffers shuffle: restoring it reproduces the same sample."""
    return np.random.get_state(legacy=False)  # noqa: NPY002


def normalized(advantages: th.Tensor, to_unit_deviation: bool) -> th.Tensor:
    """
    Advantages as the policy update uses them.

    :param advantages: any shape
    :param to_unit_deviation: whether to give them mean 0 and standard deviation 1
    :return: the same shape; zeros if the advantages are all equal up to rounding
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
    The samples of a rollout that the policy update uses.

    :param observations: tensor or dict of tensors, the states along the first dimension
    :param actions: taken in these states, in the form that the distribution's ``log_prob`` takes
    :param old_log_prob: log-probabilities of the actions under the policy that took them, shape (states,)
    :param advantages: of the actions, as :func:`normalized` returns them, shape (states,)
    :param raw_advantages: the same before normalisation
    """

    observations: PyTorchObs
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    raw_advantages: th.Tensor

    def at(self, index: slice | th.Tensor) -> "Sample":
        """The samples of some of the states, by slice or by an integer tensor."""
        observations = select(self.observations, index)
        rest = (self.actions, self.old_log_prob, self.advantages, self.raw_advantages)
        return Sample(observations, *(tensor[index] for tensor in rest))

    def expected_advantage(self, distribution: Distribution, advantages: th.Tensor) -> th.Tensor:
        """E[ pi_theta(a|s) / pi_old(a|s) * A(s,a) ]: the single-path estimator (TRPO paper, equation 14 with q = pi_old)."""
        return (th.exp(distribution.log_prob(self.actions) - self.old_log_prob) * advantages).mean()

    def entropy(self, distribution: Distribution) -> th.Tensor:
        """Entropy of the joint action distribution, mean over the states, in nats."""
        return entropy(distribution, distribution.log_prob(self.actions), self.old_log_prob)
