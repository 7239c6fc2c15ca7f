"""The bridge from an SB3 policy and a rollout to the mathematics in :mod:`sb3_trpo_plus.trust_region`."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    Distribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import distributions as td
from torch import nn
from torch.autograd import forward_ad as fwAD

from sb3_trpo_plus import networks
from sb3_trpo_plus.trust_region.fisher import (
    FisherVectorProduct,
    Push,
    empirical_fisher,
    gauss_newton_curvature,
    gauss_newton_fisher,
    hessian_curvature,
    hessian_fisher,
    mlp_empirical_fisher,
    mlp_fisher,
    sum_of_products,
)
from sb3_trpo_plus.trust_region.flat import flatten, unflatten
from sb3_trpo_plus.trust_region.metric import OutputBlock, kl_per_state, output_blocks
from sb3_trpo_plus.trust_region.mlp import Mlp, MlpJacobian

# Samples of a chunk in the products of convolutional policies.
CHUNK = 128


def select(observations: PyTorchObs, index: slice | th.Tensor) -> PyTorchObs:
    """
    Some samples of a batch of observations.

    :param observations: tensor or dict of tensors, the samples along the first dimension
    :param index: of the samples, a slice or integers of shape (samples,)
    :return: of the same kind
    """
    if isinstance(observations, dict):
        return {key: value[index] for key, value in observations.items()}
    return observations[index]


def every(observations: PyTorchObs, k: int) -> PyTorchObs:
    """
    Every k-th sample of a batch of observations.

    :param observations: tensor or dict of tensors, the samples along the first dimension
    :param k: at least 1
    :return: views of the same kind
    """
    return select(observations, slice(None, None, k))


class NotADistributionError(ValueError):
    """The outputs of a policy overflow or are not finite, and so are no parameters of a distribution."""


def action_distribution(policy: ActorCriticPolicy, observations: PyTorchObs) -> Distribution:
    """
    The policy's action distributions in a batch of states. SB3 reuses one object for every batch; this one stays.

    :param policy: any policy with SB3's ``get_distribution``
    :param observations: tensor or dict of tensors, the samples along the first dimension
    :return: a distribution of its own, differentiable by the policy's parameters unless gradients are off
    :raises NotADistributionError: torch's distributions refuse the policy's outputs
    """
    try:
        return copy.copy(policy.get_distribution(observations))
    except ValueError as error:
        # Torch has no exception of its own for this, and goes on to print the whole batch.
        if "to satisfy the constraint" not in str(error):
            raise
        raise NotADistributionError(str(error).splitlines()[0]) from error


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
    How many dimensions of the action :func:`kl_divergence` averages over: the joint KL is that many times as much.

    :param distribution: for a batch of states
    :return: the dimensions of a Box or MultiBinary action, 1 for a Discrete or MultiDiscrete one
    """
    return components(distribution)[0].batch_shape[1:].numel()


def entropy(distribution: Distribution, log_prob: th.Tensor, old_log_prob: th.Tensor) -> th.Tensor:
    """
    Mean entropy, exact or, where it has no closed form (squashed distributions), estimated from the taken actions.

    The estimate weighs the actions by the ratio of the policies, since those of the old policy alone say nothing of how the
    new one's entropy changes; the mean of the old log-probabilities is a baseline against its variance.

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


def actor_gradient(policy: ActorCriticPolicy, objective: th.Tensor) -> tuple[list[th.nn.Parameter], th.Tensor]:
    """
    Find the actor, and its gradient, by one backward pass: the actor's parameters are those the objective depends on.

    :param policy: whose trainable parameters are looked at, in their order
    :param objective: scalar made from the action distribution
    :return: the actor's parameters, and the flat gradient by them
    :raises ValueError: when the objective depends on none of them
    """
    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if objective.requires_grad and trainable:
        gradients = th.autograd.grad(objective, trainable, allow_unused=True)
        found = [(p, g) for p, g in zip(trainable, gradients, strict=True) if g is not None]
        if found:
            return [p for p, _ in found], flatten([g for _, g in found])
    raise ValueError(
        f"The action distribution of {type(policy).__name__} depends on none of the policy's trainable parameters, so there "
        "is nothing to optimise: make its networks submodules of the policy, leave their requires_grad on, and do not "
        "switch gradients off in get_distribution()"
    )


@contextmanager
def parameters_at(parameters: Sequence[th.Tensor], values: Sequence[th.Tensor]) -> Iterator[None]:
    """
    Give parameters other values for a while, without a trace in autograd's graphs.

    :param parameters: they have their own storage again afterwards
    :param values: of the same shapes
    """
    own = [parameter.data for parameter in parameters]
    try:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, value in zip(parameters, own, strict=True):
            parameter.data = value


def fisher_vector_product(
    policy: ActorCriticPolicy, observations: PyTorchObs, parameters: Sequence[th.Tensor]
) -> FisherVectorProduct:
    """
    The Fisher matrix of the policy, averaged over states, at its present parameters, as a product with vectors.

    :param policy: any policy with SB3's ``get_distribution``
    :param observations: tensor or dict of tensors, the samples along the first dimension
    :param parameters: the actor's
    :return: function of a flat vector, without damping
    """
    if any(isinstance(module, nn.modules.conv._ConvNd) for module in policy.modules()):
        return _in_chunks(policy, observations, parameters)
    return _product(policy, observations, parameters)


def empirical_fisher_vector_product(
    policy: ActorCriticPolicy, observations: PyTorchObs, actions: th.Tensor, parameters: Sequence[th.Tensor]
) -> FisherVectorProduct:
    """
    The covariance of the gradients of the log-probabilities of the actions taken, as a product with vectors.

    :param policy: any policy with SB3's ``get_distribution``
    :param observations: tensor or dict of tensors, the samples along the first dimension
    :param actions: taken there, as the distribution's ``log_prob`` takes them
    :param parameters: the actor's
    :return: function of a flat vector, without damping
    """
    network = _plain_network(policy, parameters)
    if network is None or isinstance(policy.action_dist, StateDependentNoiseDistribution):
        distribution = action_distribution(policy, observations)
        return empirical_fisher(distribution.log_prob(actions), parameters, averaged_dimensions(distribution))
    jacobian = MlpJacobian(network, networks.features(policy, observations))
    outputs = network.layers[-1](jacobian.inputs[-1]).detach().requires_grad_()
    of_states = [outputs]
    if isinstance(policy.action_dist, DiagGaussianDistribution):
        of_states.append(policy.log_std.detach().expand_as(outputs).requires_grad_())
    distribution = copy.copy(policy.action_dist).proba_distribution(*of_states)
    scores = th.autograd.grad(distribution.log_prob(actions).sum(), of_states)
    return mlp_empirical_fisher(scores[0], jacobian, averaged_dimensions(distribution), *scores[1:])


def kl_curvature(
    policy: ActorCriticPolicy, observations: PyTorchObs, parameters: Sequence[th.Tensor], vector: th.Tensor
) -> th.Tensor:
    """
    v' F_s v with the Fisher matrix of each state alone: twice the quadratic model of :func:`kl_divergence` for a step v.

    :param policy: any policy with SB3's ``get_distribution``
    :param observations: tensor or dict of tensors, the samples along the first dimension
    :param parameters: the actor's
    :param vector: flat
    :return: shape (states,), at least 0
    """
    distribution = action_distribution(policy, observations)
    blocks = _blocks(distribution)
    if blocks is None:
        with th.no_grad():
            constant = action_distribution(policy, observations)
        return hessian_curvature(kl_divergence(constant, distribution), parameters, vector)
    return gauss_newton_curvature(blocks, parameters, vector, partial(_push, policy, observations, parameters))


def _in_chunks(policy: ActorCriticPolicy, observations: PyTorchObs, parameters: Sequence[th.Tensor]) -> FisherVectorProduct:
    """On the CPU convolutions run faster on samples so few that their activations stay in the caches."""
    n_states = len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
    chunk_size = CHUNK if policy.device.type == "cpu" else n_states
    products, weights = [], []
    for start in range(0, n_states, chunk_size):
        part = slice(start, min(start + chunk_size, n_states))
        chunk = select(observations, part)
        products.append(_product(policy, chunk, parameters, partial(_push, policy, chunk, parameters)))
        weights.append((part.stop - part.start) / n_states)
    return sum_of_products(products, weights)


def _push(
    policy: ActorCriticPolicy, observations: PyTorchObs, parameters: Sequence[th.Tensor], vector: th.Tensor
) -> list[th.Tensor]:
    """The changes of the distribution's outputs with a change of the parameters, by forward mode."""
    spots = [(module, name, p) for module in policy.modules() for name, p in module._parameters.items() if p is not None]
    with fwAD.dual_level(), th.no_grad():
        pieces = zip(parameters, unflatten(vector, parameters), strict=True)
        duals = {id(p): fwAD.make_dual(p.detach(), change) for p, change in pieces}  # type: ignore[no-untyped-call]
        try:
            for module, name, parameter in spots:
                module._parameters[name] = duals.get(id(parameter), parameter)
            outputs = [block.output for block in _blocks(action_distribution(policy, observations)) or []]
            changes = [fwAD.unpack_dual(output).tangent for output in outputs]  # type: ignore[no-untyped-call]
            return [
                th.zeros_like(output) if change is None else change for output, change in zip(outputs, changes, strict=True)
            ]
        finally:
            for module, name, parameter in spots:
                module._parameters[name] = parameter


def _product(
    policy: ActorCriticPolicy, observations: PyTorchObs, parameters: Sequence[th.Tensor], push: Push | None = None
) -> FisherVectorProduct:
    distribution = action_distribution(policy, observations)
    blocks = _blocks(distribution)
    if blocks is None:
        with th.no_grad():
            constant = action_distribution(policy, observations)
        return hessian_fisher(kl_divergence(constant, distribution).mean(), parameters)
    return _closed_form(policy, observations, parameters, blocks) or gauss_newton_fisher(blocks, parameters, push)


def _closed_form(
    policy: ActorCriticPolicy, observations: PyTorchObs, parameters: Sequence[th.Tensor], blocks: Sequence[OutputBlock]
) -> FisherVectorProduct | None:
    """The product for plain MLPs; None for other policies."""
    network = _plain_network(policy, parameters)
    if network is None:
        return None
    jacobian = MlpJacobian(network, networks.features(policy, observations))
    if not hasattr(policy, "log_std"):
        return mlp_fisher(blocks, jacobian)

    # Means depend on the network alone, standard deviations on log_std alone: the Fisher matrix has a block for each.
    mean, std = blocks
    n_std = policy.log_std.numel()
    result = policy.log_std.new_empty(n_std + network.size)
    of_network, of_log_std = mlp_fisher([mean], jacobian, result[n_std:]), gauss_newton_fisher([std], [policy.log_std])
    # Where all states share one standard deviation, its metric is 2 in the logarithm, averaged over the dimensions.
    is_shared = isinstance(policy.action_dist, DiagGaussianDistribution)

    def product(vector: th.Tensor) -> th.Tensor:
        result[:n_std] = vector[:n_std] * (2 / n_std) if is_shared else of_log_std(vector[:n_std])
        of_network(vector[n_std:])
        return result

    return product


def _plain_network(policy: ActorCriticPolicy, parameters: Sequence[th.Tensor]) -> Mlp | None:
    """The policy's network where it is a plain MLP and the parameters are log_std, if there is one, and the network's."""
    network = networks.plain_actor(policy)
    if network is None:
        return None
    expected = [*([policy.log_std] if hasattr(policy, "log_std") else []), *network.parameters]
    same = [id(parameter) for parameter in parameters] == [id(parameter) for parameter in expected]
    return network if same else None


def first_not_finite(rollout_buffer: RolloutBuffer) -> str | None:
    """
    What of a rollout is not finite, named in the order in which one thing spoils the next.

    :param rollout_buffer: full, with returns and advantages
    :return: words for the first such part, None when the update can use all of it
    """
    observations = rollout_buffer.observations
    named = list(observations.items()) if isinstance(observations, dict) else [("", observations)]
    parts = [(f"observations {key}".strip(), data) for key, data in named]
    parts += [("log-probabilities of the actions", rollout_buffer.log_probs), ("rewards", rollout_buffer.rewards)]
    parts += [("values", rollout_buffer.values), ("advantages", rollout_buffer.advantages)]
    return next((name for name, data in parts if not np.isfinite(data).all()), None)


@th.no_grad()
def refresh_running_statistics(policy: ActorCriticPolicy, rollout_buffer: RolloutBuffer) -> None:
    """
    Let batch norm layers of the actor see the rollout once, since neither the step nor the critic's fit moves them.

    :param policy: in training mode
    :param rollout_buffer: full
    """
    if any(isinstance(module, th.nn.modules.batchnorm._BatchNorm) for module in policy.modules()):
        policy.get_distribution(next(rollout_buffer.get(batch_size=None)).observations)


def hold_actor(policy: ActorCriticPolicy, actor_parameters: Sequence[th.nn.Parameter]) -> None:
    """
    Put the layers that hold the actor's parameters in evaluation mode: their running statistics then stay as they are.

    :param policy: the layers of which are looked at one by one
    :param actor_parameters: as :func:`actor_gradient` found them
    """
    actor = {id(parameter) for parameter in actor_parameters}
    for module in policy.modules():
        if any(id(parameter) in actor for parameter in module.parameters(recurse=False)):
            module.training = False


def components(distribution: Distribution) -> list[td.Distribution]:
    """
    The independent torch distributions that an SB3 distribution is made of.

    :param distribution: for a batch of states
    :return: one for each component of a MultiDiscrete action, otherwise a single one
    """
    inner = distribution.distribution
    return list(inner) if isinstance(inner, (list, tuple)) else [inner]


def _blocks(distribution: Distribution) -> list[OutputBlock] | None:
    """The outputs of all components with their metric; None where that of one is not known."""
    groups = [output_blocks(component) for component in components(distribution)]
    return None if None in groups else [block for group in groups for block in group or []]
