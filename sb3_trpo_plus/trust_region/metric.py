"""
The Fisher metric of torch distributions, in the outputs that a policy network computes for them.

Between two nearby members of a family, KL(old || new) is ``u' M u / 2`` to second order, where ``u`` is the change of the
outputs and ``M`` their metric. With ``J`` the Jacobian of the outputs, the Fisher matrix of the policy is ``J' M J``.

A distribution with ``batch_shape`` (states, dimensions) has its KL *averaged* over the independent dimensions, as in
sb3-contrib, so that ``target_kl`` means the same in both libraries. The KL of the whole action is that times the number of
dimensions.
"""

from collections.abc import Callable
from functools import singledispatch
from typing import NamedTuple

import torch as th
from torch import distributions as td


class OutputBlock(NamedTuple):
    """
    One output of a policy for a batch of states, and its block of the Fisher metric.

    :param output: differentiable tensor, the states along its first dimension
    :param metric: maps a change of the output, of the same shape, to ``M`` times it, state by state
    """

    output: th.Tensor
    metric: Callable[[th.Tensor], th.Tensor]

    def scaled(self, factor: float) -> "OutputBlock":
        """The same output with its metric times a factor."""
        return OutputBlock(self.output, lambda change: factor * self.metric(change))


def _dimensions(distribution: td.Distribution) -> int:
    return distribution.batch_shape[1:].numel()


@singledispatch
def output_blocks(distribution: td.Distribution) -> list[OutputBlock] | None:
    """
    The outputs of a batch of distributions, one for each state, with their metric.

    Known are ``Normal``, ``Categorical`` and ``Bernoulli``, also inside ``Independent`` and ``TransformedDistribution`` (a
    bijection of the action leaves every KL as it is).

    :param distribution: ``batch_shape`` (states, ...)
    :return: blocks that are independent of each other; None for any other family
    """
    return None


@output_blocks.register
def _(distribution: td.Normal) -> list[OutputBlock]:
    weight = distribution.scale.detach().pow(-2) / _dimensions(distribution)
    return [
        OutputBlock(distribution.loc, lambda change: weight * change),
        OutputBlock(distribution.scale, lambda change: 2 * weight * change),
    ]


@output_blocks.register
def _(distribution: td.Categorical) -> list[OutputBlock]:
    probs = distribution.probs.detach()
    dimensions = _dimensions(distribution)

    def metric(change: th.Tensor) -> th.Tensor:
        weighted = probs * change / dimensions
        return weighted - probs * weighted.sum(-1, keepdim=True)

    return [OutputBlock(distribution.logits, metric)]


@output_blocks.register
def _(distribution: td.Bernoulli) -> list[OutputBlock]:
    probs = distribution.probs.detach()
    weight = probs * (1 - probs) / _dimensions(distribution)
    return [OutputBlock(distribution.logits, lambda change: weight * change)]


@output_blocks.register(td.Independent)
def _(distribution: "td.Independent[td.Distribution]") -> list[OutputBlock] | None:
    blocks = output_blocks(distribution.base_dist)
    summed = distribution.base_dist.batch_shape[len(distribution.batch_shape) :].numel()
    return blocks and [block.scaled(summed) for block in blocks]


@output_blocks.register
def _(distribution: td.TransformedDistribution) -> list[OutputBlock] | None:
    return output_blocks(distribution.base_dist)


def kl_per_state(old: td.Distribution, new: td.Distribution) -> th.Tensor:
    """
    KL(old || new) in each state, averaged over independent action dimensions.

    :param old: ``batch_shape`` (states, ...)
    :param new: the same family and shape
    :return: shape (states,), nats
    :raises NotImplementedError: when torch knows no KL between the two; ``torch.distributions.register_kl`` adds one
    """
    kl = td.kl_divergence(old, new)
    return kl.reshape(kl.shape[0], -1).mean(dim=1)
