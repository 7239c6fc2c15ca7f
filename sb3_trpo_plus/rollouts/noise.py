"""The noise that makes actions of a policy's outputs."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)

Array = npt.NDArray[Any]


def noisy_actions(distribution: Distribution, outputs: Array, noise: Array) -> Array:
    """
    The actions that noise makes of means or logits.

    :param distribution: Gaussian, categorical, multi-categorical or Bernoulli
    :param outputs: means or logits, shape (environments, outputs)
    :param noise: as :func:`standard_noise` draws it, of the same shape, times the standard deviations of a Gaussian
    :return: shape (environments,) for categories, (environments, dimensions) otherwise
    """
    noisy = outputs + noise
    if isinstance(distribution, CategoricalDistribution):
        actions: Array = noisy.argmax(axis=1)
    elif isinstance(distribution, MultiCategoricalDistribution):
        parts = np.split(noisy, np.cumsum(distribution.action_dims)[:-1], axis=1)
        actions = np.stack([part.argmax(axis=1) for part in parts], axis=1)
    elif isinstance(distribution, BernoulliDistribution):
        actions = (noisy > 0).astype(outputs.dtype)
    else:
        actions = noisy
    return actions


def noise_width(distribution: Distribution) -> int:
    """Numbers of noise that an action takes: Gaussian, gSDE, categorical, multi-categorical or Bernoulli."""
    if isinstance(distribution, (MultiCategoricalDistribution, BernoulliDistribution)):
        return int(np.sum(distribution.action_dims))
    return int(getattr(distribution, "action_dim"))  # noqa: B009


def standard_noise(distribution: Distribution, n_steps: int, n_envs: int) -> th.Tensor:
    """
    Noise that makes actions of means or logits, drawn on the CPU, as torch's samplers draw it there.

    :param distribution: Gaussian, gSDE, categorical, multi-categorical or Bernoulli
    :param n_steps: of each environment
    :param n_envs: environments, which act together
    :return: normal, Gumbel or logistic variables, shape (steps, environments, ``noise_width``)
    """
    width, steps = noise_width(distribution), range(n_steps)
    if isinstance(distribution, (DiagGaussianDistribution, StateDependentNoiseDistribution)):
        return th.stack([th.randn(n_envs, width) for _ in steps])
    if isinstance(distribution, BernoulliDistribution):
        # A bit is set where a uniform number is below its probability.
        return th.stack([th.rand(n_envs, width) for _ in steps]).logit().neg()
    # torch.multinomial takes the largest probability / exponential number: a Gumbel variable is minus the latter's logarithm.
    widths = distribution.action_dims if isinstance(distribution, MultiCategoricalDistribution) else [width]
    draws = [[th.empty(n_envs, width).exponential_() for width in widths] for _ in steps]
    noise = th.stack([parts[0] if len(parts) == 1 else th.cat(parts, dim=1) for parts in draws])
    # Not below float32's smallest normal number: an infinite Gumbel variable would win whatever the logits say.
    return noise.clamp_(min=th.finfo(th.float32).tiny).log_().neg_()
