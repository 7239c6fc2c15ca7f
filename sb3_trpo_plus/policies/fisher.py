"""Products with the Fisher matrix of an SB3 policy."""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    Distribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.autograd import forward_ad as fwAD
from torch.nn.attention import SDPBackend, sdpa_kernel

from sb3_trpo_plus.policies.actor import parameters_at
from sb3_trpo_plus.policies.distributions import action_distribution, averaged_dimensions, blocks_of, kl_divergence
from sb3_trpo_plus.policies.observations import select
from sb3_trpo_plus.policies.plain import features, plain_actor
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
    reverse_push,
    sum_of_products,
)
from sb3_trpo_plus.trust_region.flat import flatten, unflatten
from sb3_trpo_plus.trust_region.metric import OutputBlock
from sb3_trpo_plus.trust_region.mlp import Mlp, MlpJacobian

Outputs = Callable[[], list[th.Tensor]]
T = TypeVar("T")
# Samples of a chunk in the products of convolutional policies.
CHUNK = 128


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
    if _has_convolutions(policy):
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
        with _twice_differentiable(policy):
            distribution = action_distribution(policy, observations)
            log_prob = distribution.log_prob(actions)

        def log_probs() -> list[th.Tensor]:
            return [action_distribution(policy, observations).log_prob(actions)]

        push = _push(policy, log_probs, parameters, [OutputBlock(log_prob, th.Tensor.clone)])
        return empirical_fisher(log_prob, parameters, averaged_dimensions(distribution), push)
    jacobian = MlpJacobian(network, features(policy, observations))
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
    with _twice_differentiable(policy):
        distribution = action_distribution(policy, observations)
    blocks = blocks_of(distribution)
    if blocks is None:
        with th.no_grad():
            constant = action_distribution(policy, observations)
        kl = kl_divergence(constant, distribution)
        return _first_that_works(
            lambda: partial(hessian_curvature, kl, parameters),
            lambda: partial(_curvature_by_differences, policy, observations, constant, parameters),
        )(vector)
    outputs = partial(_outputs, policy, _constant_latent(distribution), observations)
    push = _push(policy, outputs, parameters, blocks)
    return gauss_newton_curvature(blocks, parameters, vector, push)


def _in_chunks(policy: ActorCriticPolicy, observations: PyTorchObs, parameters: Sequence[th.Tensor]) -> FisherVectorProduct:
    """On the CPU convolutions run faster on samples so few that their activations stay in the caches."""
    n_states = len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
    chunk_size = CHUNK if policy.device.type == "cpu" else n_states
    products, weights = [], []
    for start in range(0, n_states, chunk_size):
        part = slice(start, min(start + chunk_size, n_states))
        products.append(_product(policy, select(observations, part), parameters))
        weights.append((part.stop - part.start) / n_states)
    return sum_of_products(products, weights)


def _product(policy: ActorCriticPolicy, observations: PyTorchObs, parameters: Sequence[th.Tensor]) -> FisherVectorProduct:
    with _twice_differentiable(policy):
        distribution = action_distribution(policy, observations)
    blocks = blocks_of(distribution)
    if blocks is None:
        with th.no_grad():
            constant = action_distribution(policy, observations)
        mean_kl = kl_divergence(constant, distribution).mean()
        return _first_that_works(
            lambda: hessian_fisher(mean_kl, parameters),
            lambda: partial(_hessian_by_differences, policy, observations, constant, parameters),
        )
    closed_form = _closed_form(policy, observations, parameters, blocks)
    if closed_form is not None:
        return closed_form
    outputs = partial(_outputs, policy, _constant_latent(distribution), observations)
    push = _push(policy, outputs, parameters, blocks)
    return gauss_newton_fisher(blocks, parameters, push)


def _push(policy: ActorCriticPolicy, outputs: Outputs, parameters: Sequence[th.Tensor], blocks: Sequence[OutputBlock]) -> Push:
    """
    v -> J v, the changes of a policy's outputs with a change of the parameters.

    For convolutions by forward mode, which takes half the time there. Where that has no rule for some layer, as for all other
    networks, by reverse mode; where a layer has no second derivative either, by finite differences.

    :param outputs: computes them at the present parameters
    :param blocks: the same outputs with their graph
    """
    ways: list[Callable[[], Push]] = [
        lambda: reverse_push(blocks, parameters),
        lambda: partial(_by_differences, outputs, parameters),
    ]
    if _has_convolutions(policy):
        ways.insert(0, lambda: partial(_by_forward_mode, policy, outputs, parameters))
    return _first_that_works(*ways)


def _first_that_works(*ways: Callable[[], Callable[[th.Tensor], T]]) -> Callable[[th.Tensor], T]:
    """
    A function of a vector, by the first way for which torch has all derivatives.

    :param ways: each makes the function. Those are left aside that raise NotImplementedError, as torch does where it lacks a
        derivative, and nothing that is an error of the user's or of the memory
    """
    left = list(ways)
    made: Callable[[th.Tensor], T] | None = None

    def function(vector: th.Tensor) -> T:
        nonlocal made
        while True:
            try:
                made = made or left[0]()
                return made(vector)
            except NotImplementedError:
                if len(left) == 1:
                    raise
                made = None
                left.pop(0)

    return function


def _by_forward_mode(
    policy: ActorCriticPolicy, outputs: Outputs, parameters: Sequence[th.Tensor], vector: th.Tensor
) -> list[th.Tensor]:
    """:raises NotImplementedError: a layer has no rule for it"""
    spots = [(module, name, p) for module in policy.modules() for name, p in module._parameters.items() if p is not None]
    with fwAD.dual_level(), th.no_grad(), _without_compiling():
        pieces = zip(parameters, unflatten(vector, parameters), strict=True)
        duals = {id(p): fwAD.make_dual(p.detach(), change) for p, change in pieces}  # type: ignore[no-untyped-call]
        try:
            for module, name, parameter in spots:
                module._parameters[name] = duals.get(id(parameter), parameter)
            there = [fwAD.unpack_dual(output) for output in outputs()]  # type: ignore[no-untyped-call]
            return [th.zeros_like(dual.primal) if dual.tangent is None else dual.tangent for dual in there]
        finally:
            for module, name, parameter in spots:
                module._parameters[name] = parameter


@th.no_grad()
def _by_differences(outputs: Outputs, parameters: Sequence[th.Tensor], vector: th.Tensor) -> list[th.Tensor]:
    """J v by central differences."""
    ahead, behind, distance = _on_both_sides(parameters, vector, outputs)
    return [(one - other) / (2 * distance) for one, other in zip(ahead, behind, strict=True)]


def _hessian_by_differences(
    policy: ActorCriticPolicy,
    observations: PyTorchObs,
    old: Distribution,
    parameters: Sequence[th.Tensor],
    vector: th.Tensor,
) -> th.Tensor:
    """The Hessian of the mean KL(old || new) times a vector, by central differences of the gradient."""

    @th.enable_grad()
    def gradient() -> th.Tensor:
        kl = kl_divergence(old, action_distribution(policy, observations)).mean()
        return flatten(th.autograd.grad(kl, parameters, allow_unused=True, materialize_grads=True))

    ahead, behind, distance = _on_both_sides(parameters, vector, gradient)
    return (ahead - behind) / (2 * distance)


@th.no_grad()
def _curvature_by_differences(
    policy: ActorCriticPolicy,
    observations: PyTorchObs,
    old: Distribution,
    parameters: Sequence[th.Tensor],
    vector: th.Tensor,
) -> th.Tensor:
    """v' H_s v of each state, by differences of its KL(old || new), which has neither value nor slope where it begins."""

    def kl() -> th.Tensor:
        return kl_divergence(old, action_distribution(policy, observations))

    ahead, behind, distance = _on_both_sides(parameters, vector, kl, order=4)
    return (ahead + behind) / distance**2


def _on_both_sides(
    parameters: Sequence[th.Tensor], vector: th.Tensor, compute: Callable[[], T], order: int = 3
) -> tuple[T, T, float]:
    """
    Something ahead of the present parameters and behind them, and the distance, as a factor of the vector.

    :param order: the distance is this root of the precision, which balances rounding against curvature
    """
    flat = flatten([parameter.detach() for parameter in parameters])
    norm = th.linalg.vector_norm(vector).item()
    distance = th.finfo(flat.dtype).eps ** (1 / order) * max(1.0, th.linalg.vector_norm(flat).item()) / (norm or 1.0)
    there = []
    for sign in (1, -1):
        with parameters_at(parameters, unflatten(flat + sign * distance * vector, parameters)):
            there.append(compute())
    return there[0], there[1], distance


def _outputs(policy: ActorCriticPolicy, latent_sde: th.Tensor | None, observations: PyTorchObs) -> list[th.Tensor]:
    """:param latent_sde: what gSDE's standard deviations are made of, which are constant to autograd"""
    distribution = action_distribution(policy, observations)
    if latent_sde is not None:
        mean = distribution.distribution.mean  # type: ignore[union-attr]  # gSDE's is one Normal
        distribution = copy.copy(distribution).proba_distribution(mean, policy.log_std, latent_sde)
    return [block.output for block in blocks_of(distribution) or []]


def _constant_latent(distribution: Distribution) -> th.Tensor | None:
    if isinstance(distribution, StateDependentNoiseDistribution) and not distribution.learn_features:
        return distribution._latent_sde.detach()
    return None


@contextmanager
def _twice_differentiable(policy: ActorCriticPolicy) -> Iterator[None]:
    """Where torch has several kernels for a layer, those whose derivatives can be differentiated again."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_without_compiling())
        if policy.device.type == "cuda" and any(isinstance(module, nn.RNNBase) for module in policy.modules()):
            stack.enter_context(th.backends.cudnn.flags(enabled=False))
        yield


def _without_compiling() -> AbstractContextManager[Any]:
    """Compiled modules have first derivatives alone. Where none has been compiled, the compiler need not be imported."""
    return th.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _has_convolutions(policy: ActorCriticPolicy) -> bool:
    return any(isinstance(module, nn.modules.conv._ConvNd) for module in policy.modules())


def _closed_form(
    policy: ActorCriticPolicy, observations: PyTorchObs, parameters: Sequence[th.Tensor], blocks: Sequence[OutputBlock]
) -> FisherVectorProduct | None:
    """The product for plain MLPs; None for other policies."""
    network = _plain_network(policy, parameters)
    if network is None:
        return None
    jacobian = MlpJacobian(network, features(policy, observations))
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
    network = plain_actor(policy)
    if network is None:
        return None
    expected = [*([policy.log_std] if hasattr(policy, "log_std") else []), *network.parameters]
    same = [id(parameter) for parameter in parameters] == [id(parameter) for parameter in expected]
    return network if same else None
