"""Sampling of actions as a function of a policy's outputs and of noise that is drawn apart from them."""

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
    The actions sampled with given noise.

    :param distribution: Gaussian, categorical, multi-categorical or Bernoulli
    :param outputs: means or logits, shape (environments, outputs)
    :param noise: one step of :func:`standard_noise`, for Gaussians times the standard deviations; shape as ``outputs``
    :return: shape (environments,) for categorical distributions, (environments, dimensions) otherwise
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
    """How many random numbers one action is sampled from, for any distribution that :func:`standard_noise` takes."""
    if isinstance(distribution, (MultiCategoricalDistribution, BernoulliDistribution)):
        return int(np.sum(distribution.action_dims))
    return int(getattr(distribution, "action_dim"))  # noqa: B009


def standard_noise(distribution: Distribution, n_steps: int, n_envs: int) -> th.Tensor:
    """
    Noise for :func:`noisy_actions`: the same numbers that torch's samplers would draw on the CPU, step by step.

    :param distribution: Gaussian, gSDE, categorical, multi-categorical or Bernoulli
    :param n_steps: number of steps
    :param n_envs: number of environments, sampled together in a step
    :return: normal, Gumbel or logistic variables, shape (steps, environments, ``noise_width``)
    """
    width, steps = noise_width(distribution), range(n_steps)
    if isinstance(distribution, (DiagGaussianDistribution, StateDependentNoiseDistribution)):
        return th.stack([th.randn(n_envs, width) for _ in steps])
    if isinstance(distribution, BernoulliDistribution):
        # torch.bernoulli sets a bit where a uniform number u is below its probability, so where logit(p) - logit(u) > 0.
        return th.stack([th.rand(n_envs, width) for _ in steps]).logit().neg()
    # torch.multinomial takes the argmax of probability / exponential variable: -log of the latter is a Gumbel variable.
    widths = distribution.action_dims if isinstance(distribution, MultiCategoricalDistribution) else [width]
    draws = [[th.empty(n_envs, width).exponential_() for width in widths] for _ in steps]
    noise = th.stack([parts[0] if len(parts) == 1 else th.cat(parts, dim=1) for parts in draws])
    # Clamped, since an exponential variable of 0 would give an infinite Gumbel variable, which wins whatever the logits.
    return noise.clamp_(min=th.finfo(th.float32).tiny).log_().neg_()
