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
from sb3_trpo_plus.policies.observations import parts_of, select
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
# Samples in a chunk, for the products of convolutional policies on the CPU.
CHUNK = 128


def fisher_vector_product(
    policy: ActorCriticPolicy, observations: PyTorchObs, parameters: Sequence[th.Tensor]
) -> FisherVectorProduct:
    """
    Product of the policy's Fisher matrix, averaged over states, at its present parameters, with vectors.

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
    Product of the empirical Fisher matrix, E[grad log pi grad log pi'] over the actions taken, with vectors.

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
    v' F_s v, with F_s the Fisher matrix of a single state: twice the second-order model of its KL(old || new) for a step v.

    :param policy: any policy with SB3's ``get_distribution``
    :param observations: tensor or dict of tensors, the samples along the first dimension
    :param parameters: the actor's
    :param vector: flat
    :return: shape (states,), at least 0
    """
    parts = _chunks(policy, observations) if _has_convolutions(policy) else [observations]
    return th.cat([_curvature(policy, part, parameters, vector) for part in parts])


def _curvature(
    policy: ActorCriticPolicy, observations: PyTorchObs, parameters: Sequence[th.Tensor], vector: th.Tensor
) -> th.Tensor:
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
    """The product as a weighted sum over chunks of samples."""
    chunks = _chunks(policy, observations)
    sizes = [_n_samples(chunk) for chunk in chunks]
    products = [_product(policy, chunk, parameters) for chunk in chunks]
    return sum_of_products(products, [size / sum(sizes) for size in sizes])


def _chunks(policy: ActorCriticPolicy, observations: PyTorchObs) -> list[PyTorchObs]:
    """On the CPU few samples at a time, so that the activations of convolutions stay in the caches."""
    n_states = _n_samples(observations)
    size = CHUNK if policy.device.type == "cpu" else n_states
    return [select(observations, slice(start, start + size)) for start in range(0, n_states, size)]


def _n_samples(observations: PyTorchObs) -> int:
    return len(next(iter(parts_of(observations).values())))


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
    v -> J v, with J the Jacobian of a policy's outputs by its parameters.

    Convolutional policies use forward-mode differentiation, which takes half the time there. Other policies, and layers
    without a forward-mode rule, use reverse mode; layers without a second derivative, finite differences.

    :param policy: the policy
    :param outputs: computes the outputs at the present values of the parameters
    :param parameters: the actor's
    :param blocks: the same outputs, with their autograd graph
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
    A function of a vector, computed by the first of several ways for which torch has all derivatives.

    :param ways: each returns the function. A way is dropped for good when it, or its function, raises NotImplementedError, as
        torch does where it lacks a derivative; other errors, of the user's code or for lack of memory, are passed on
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
    """J v by forward-mode differentiation; raises NotImplementedError if a layer has no rule for it."""
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
    """v' H_s v of each state, by second differences of its KL(old || new), which is 0 with zero gradient at the old policy."""

    def kl() -> th.Tensor:
        return kl_divergence(old, action_distribution(policy, observations))

    ahead, behind, distance = _on_both_sides(parameters, vector, kl, order=4)
    return (ahead + behind) / distance**2


def _on_both_sides(
    parameters: Sequence[th.Tensor], vector: th.Tensor, compute: Callable[[], T], order: int = 3
) -> tuple[T, T, float]:
    """
    Evaluate a function at theta + h v and theta - h v, for finite differences.

    :param parameters: theta; restored afterwards
    :param vector: v, flat
    :param compute: the function, of the present values of the parameters
    :param order: h is proportional to eps^(1 / order), with eps the machine precision, which balances rounding against
        truncation: 3 for a first central difference, 4 for a second one
    :return: both values, and h
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
    """The distribution's outputs. ``latent_sde``, if given, replaces gSDE's latent features, as a constant to autograd."""
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
    """Make torch use kernels that can be differentiated twice, where a layer has several."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_without_compiling())
        if policy.device.type == "cuda" and any(isinstance(module, nn.RNNBase) for module in policy.modules()):
            stack.enter_context(th.backends.cudnn.flags(enabled=False))
        yield


def _without_compiling() -> AbstractContextManager[Any]:
    """Run compiled modules eagerly, since they have no second derivatives; without importing the compiler if nobody has."""
    return th.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _has_convolutions(policy: ActorCriticPolicy) -> bool:
    return any(isinstance(module, nn.modules.conv._ConvNd) for module in policy.modules())


def _closed_form(
    policy: ActorCriticPolicy, observations: PyTorchObs, parameters: Sequence[th.Tensor], blocks: Sequence[OutputBlock]
) -> FisherVectorProduct | None:
    """The Fisher-vector product in closed form, for plain MLPs; None for other policies."""
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
    # With one standard deviation for all states, the metric in log std is 2, divided by the dimensions averaged over.
    is_shared = isinstance(policy.action_dist, DiagGaussianDistribution)

    def product(vector: th.Tensor) -> th.Tensor:
        result[:n_std] = vector[:n_std] * (2 / n_std) if is_shared else of_log_std(vector[:n_std])
        of_network(vector[n_std:])
        return result

    return product


def _plain_network(policy: ActorCriticPolicy, parameters: Sequence[th.Tensor]) -> Mlp | None:
    """The actor's MLP; None if it is not plain, or ``parameters`` are not log_std (if any) and the MLP's, in this order."""
    network = plain_actor(policy)
    if network is None:
        return None
    expected = [*([policy.log_std] if hasattr(policy, "log_std") else []), *network.parameters]
    same = [id(parameter) for parameter in parameters] == [id(parameter) for parameter in expected]
    return network if same else None
