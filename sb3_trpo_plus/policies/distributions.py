"""Action distributions of SB3 policies: their KL, entropy, torch components, and Fisher metric."""

import copy
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.distributions import (
    Distribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import distributions as td

from sb3_trpo_plus.trust_region.metric import OutputBlock, kl_per_state, output_blocks


class NotADistributionError(ValueError):
    """The outputs of a policy are NaN or infinite, so that they do not define a distribution."""


def action_distribution(policy: ActorCriticPolicy, observations: PyTorchObs) -> Distribution:
    """
    The policy's action distribution in each of a batch of states.

    :param policy: any policy with SB3's ``get_distribution``
    :param observations: tensor or dict of tensors, the samples along the first dimension
    :return: a copy, which later calls leave alone (``get_distribution`` returns the same object every time); differentiable
        with respect to the policy's parameters unless gradients are off
    :raises NotADistributionError: torch's distributions reject the policy's outputs
    """
    try:
        return copy.copy(policy.get_distribution(observations))
    except ValueError as error:
        if not refused_by_torch(error):
            raise
        # The rest of torch's message is the whole batch.
        raise NotADistributionError(str(error).splitlines()[0]) from error


def refused_by_torch(error: Exception) -> bool:
    """Whether an exception was raised within ``torch.distributions``, which has no exception classes of its own."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("torch.distributions.")


@contextmanager
def distribution_put_back(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Restore ``policy.action_dist`` at the end of a ``with`` block. The one that an update computes holds autograd's graph,
    which can be neither copied nor pickled and keeps the rollout's activations in memory.

    :param policy: with or without an ``action_dist``
    """
    distribution = getattr(policy, "action_dist", None)
    if distribution is None:
        yield
        return
    before = dict(vars(distribution))
    try:
        yield
    finally:
        vars(distribution).clear()
        vars(distribution).update(before)


def kl_divergence(old: Distribution, new: Distribution) -> th.Tensor:
    """
    KL(old || new) in each state: the sum over the components of a MultiDiscrete action, the mean over the dimensions of a
    Box or MultiBinary action, as in sb3-contrib (see :mod:`sb3_trpo_plus.trust_region.metric`).

    :param old: for a batch of states
    :param new: of the same class, for the same states
    :return: shape (states,), nats
    :raises NotImplementedError: for a custom distribution that ``torch.distributions.kl_divergence`` does not know
    """
    pairs = zip(components(old), components(new), strict=True)
    return th.stack([kl_per_state(one, other) for one, other in pairs]).sum(dim=0)


def averaged_dimensions(distribution: Distribution) -> int:
    """
    How many action dimensions :func:`kl_divergence` averages over: the KL of the joint distribution is that many times larger.

    :param distribution: for a batch of states
    :return: the dimensions of a Box or MultiBinary action, 1 for a Discrete or MultiDiscrete one
    """
    return components(distribution)[0].batch_shape[1:].numel()


def entropy(distribution: Distribution, log_prob: th.Tensor, old_log_prob: th.Tensor) -> th.Tensor:
    """
    Mean entropy, exact or, where it has no closed form (squashed distributions), estimated from the taken actions.

    The estimate is importance-weighted by pi_new / pi_old, without which its gradient would not be the entropy's; the mean of
    the old log-probabilities is a baseline that reduces its variance.

    :param distribution: for a batch of states
    :param log_prob: of the actions taken there, shape (states,)
    :param old_log_prob: of the same actions under the policy that took them, shape (states,)
    :return: scalar, nats, of the whole action (differential for continuous actions)
    """
    exact = distribution.entropy()
    if exact is not None:
        return exact.mean()
    baseline = old_log_prob.mean()
    return -(th.exp(log_prob - old_log_prob) * (log_prob - baseline)).mean() - baseline


def components(distribution: Distribution) -> list[td.Distribution]:
    """
    The independent torch distributions that an SB3 distribution is made of.

    :param distribution: for a batch of states
    :return: one for each component of a MultiDiscrete action, otherwise a single one
    """
    inner = distribution.distribution
    return list(inner) if isinstance(inner, (list, tuple)) else [inner]


def blocks_of(distribution: Distribution) -> list[OutputBlock] | None:
    """The outputs of all components with their Fisher metrics; None if a component is of a family without a known metric."""
    groups = [output_blocks(component) for component in components(distribution)]
    return None if None in groups else [block for group in groups for block in group or []]
