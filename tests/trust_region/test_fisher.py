"""Fisher-vector products against explicit Fisher matrices, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from sb3_trpo_plus.trust_region.fisher import (
    NotTwiceDifferentiableError,
    empirical_fisher,
    gauss_newton_curvature,
    gauss_newton_fisher,
    hessian_curvature,
    hessian_fisher,
    mlp_empirical_fisher,
    reverse_push,
    sum_of_products,
)
from sb3_trpo_plus.trust_region.metric import OutputBlock, kl_per_state, output_blocks
from sb3_trpo_plus.trust_region.mlp import Mlp, MlpJacobian

Head = Callable[[th.Tensor, th.Tensor], td.Distribution | list[td.Distribution]]


class Policy(nn.Module):
    """A tanh network, a free vector of log stds, and a head that makes independent distributions of its outputs."""

    def __init__(self, n_inputs: int, n_hidden: int, n_outputs: int, head: Head) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n_inputs, n_hidden), nn.Tanh(), nn.Linear(n_hidden, n_outputs))
        self.log_std = nn.Parameter(th.randn(n_outputs) * 0.3)
        self.head = head
        self.double()

    def forward(self, states: th.Tensor) -> list[td.Distribution]:
        distributions = self.head(self.net(states), self.log_std)
        return distributions if isinstance(distributions, list) else [distributions]


def kl_of(old: list[td.Distribution], new: list[td.Distribution]) -> th.Tensor:
    """Mean over states of the sum over independent distributions."""
    return th.stack([kl_per_state(one, other) for one, other in zip(old, new, strict=True)]).sum(0).mean()


def blocks_of(distributions: list[td.Distribution]) -> list[OutputBlock]:
    return [block for distribution in distributions for block in output_blocks(distribution) or []]


def gaussian(out: th.Tensor, log_std: th.Tensor) -> td.Distribution:
    return td.Normal(out, th.ones_like(out) * log_std.exp())


def state_dependent_std(out: th.Tensor, log_std: th.Tensor) -> td.Distribution:
    return td.Normal(out, th.sqrt((th.tanh(out) ** 2) @ th.diag(log_std.exp() ** 2) + 1e-2))


def squashed(out: th.Tensor, log_std: th.Tensor) -> td.Distribution:
    return td.TransformedDistribution(gaussian(out, log_std), [td.TanhTransform()])


def multi_categorical(out: th.Tensor, log_std: th.Tensor) -> list[td.Distribution]:
    return [td.Categorical(logits=out), td.Categorical(logits=2 * out[:, :-1] ** 2 if out.shape[1] > 1 else out)]


HEADS: dict[str, Head] = {
    "gaussian": gaussian,
    "fixed std": lambda out, log_std: td.Normal(out, th.full_like(out, 0.7)),
    "state-dependent std": state_dependent_std,
    "squashed": squashed,
    "joint gaussian": lambda out, log_std: td.Independent(gaussian(out, log_std), 1),
    "categorical": lambda out, log_std: td.Categorical(logits=out),
    "multi-categorical": multi_categorical,
    "categorical from probabilities": lambda out, log_std: td.Categorical(probs=out.exp()),
    "bernoulli": lambda out, log_std: td.Bernoulli(logits=out),
    "joint bernoulli": lambda out, log_std: td.Independent(td.Bernoulli(logits=out), 1),
}
SIZES = {"n_states": st.integers(1, 5), "n_inputs": st.integers(1, 4), "n_hidden": st.integers(1, 4)}


def hessian_of_kl(policy: Policy, states: th.Tensor) -> th.Tensor:
    """The explicit Fisher matrix, as the Hessian of torch's own KL(old || new), which knows nothing of our metrics."""
    names = [name for name, _ in policy.named_parameters()]
    shapes = [parameter.shape for parameter in policy.parameters()]
    with th.no_grad():
        old = policy(states)

    def mean_kl(flat: th.Tensor) -> th.Tensor:
        pieces = flat.split([shape.numel() for shape in shapes])
        values = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        return kl_of(old, th.func.functional_call(policy, values, (states,)))

    return th.autograd.functional.hessian(mean_kl, nn.utils.parameters_to_vector(policy.parameters()).detach())


@pytest.mark.parametrize("head", HEADS)
@settings(max_examples=15, deadline=None)
@given(**SIZES, n_outputs=st.integers(1, 3), seed=st.integers(0, 2**31 - 1))
def test_gauss_newton_product_is_the_explicit_matrix(
    head: str, n_states: int, n_inputs: int, n_hidden: int, n_outputs: int, seed: int
) -> None:
    th.manual_seed(seed)
    policy = Policy(n_inputs, n_hidden, n_outputs, HEADS[head])
    states = th.randn(n_states, n_inputs, dtype=th.float64)
    matrix = hessian_of_kl(policy, states)
    product = gauss_newton_fisher(blocks_of(policy(states)), list(policy.parameters()))
    columns = th.stack([product(row) for row in th.eye(len(matrix), dtype=th.float64)])
    th.testing.assert_close(columns, matrix, rtol=1e-8, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(**SIZES, n_outputs=st.integers(2, 4), seed=st.integers(0, 2**31 - 1))
def test_categorical_product_is_the_covariance_of_the_score(
    n_states: int, n_inputs: int, n_hidden: int, n_outputs: int, seed: int
) -> None:
    """F = E_s E_a [ grad log pi(a|s) grad log pi(a|s)' ], summed over every action: the definition, without any KL."""
    th.manual_seed(seed)
    policy = Policy(n_inputs, n_hidden, n_outputs, HEADS["categorical"])
    states = th.randn(n_states, n_inputs, dtype=th.float64)
    weights = list(policy.net.parameters())
    matrix = 0.0
    for state in states:
        (distribution,) = policy(state[None])
        for action in range(n_outputs):
            log_prob = distribution.log_prob(th.tensor([action]))
            score = th.cat([g.reshape(-1) for g in th.autograd.grad(log_prob.sum(), weights, retain_graph=True)])
            matrix = matrix + log_prob.exp().detach() * th.outer(score, score) / n_states
    product = gauss_newton_fisher(blocks_of(policy(states)), weights)
    columns = th.stack([product(row) for row in th.eye(len(matrix), dtype=th.float64)])
    th.testing.assert_close(columns, matrix, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("head", HEADS)
def test_differentiating_the_kl_twice_gives_the_same_product(head: str) -> None:
    th.manual_seed(0)
    policy = Policy(3, 4, 3, HEADS[head])
    states = th.randn(6, 3, dtype=th.float64)
    parameters = list(policy.parameters())
    with th.no_grad():
        old = policy(states)
    vector = th.randn(sum(parameter.numel() for parameter in parameters), dtype=th.float64)
    twice = hessian_fisher(kl_of(old, policy(states)), parameters)(vector)
    once = gauss_newton_fisher(blocks_of(policy(states)), parameters)(vector)
    th.testing.assert_close(once, twice, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("head", HEADS)
def test_product_is_positive_semi_definite_in_float32(head: str) -> None:
    th.manual_seed(0)
    policy = Policy(3, 4, 3, HEADS[head]).float()
    parameters = list(policy.parameters())
    product = gauss_newton_fisher(blocks_of(policy(th.randn(50, 3))), parameters)
    for _ in range(200):
        vector = th.randn(sum(parameter.numel() for parameter in parameters))
        assert vector.dot(product(vector)) >= 0


def test_unknown_families_have_no_metric() -> None:
    assert output_blocks(td.Beta(th.ones(2, 1), th.ones(2, 1))) is None
    assert output_blocks(td.Independent(td.Beta(th.ones(2, 1), th.ones(2, 1)), 1)) is None


def test_kl_is_averaged_over_independent_dimensions() -> None:
    """As in sb3-contrib: (mu - mu')^2 / 2 sigma^2 in each dimension, mean over them."""
    old, new = td.Normal(th.zeros(2, 3), th.ones(2, 3)), td.Normal(th.tensor([[1.0, 0, 0], [2, 2, 2]]), th.ones(2, 3))
    th.testing.assert_close(kl_per_state(old, new), th.tensor([0.5 / 3, 2.0]))
    joint_old, joint_new = td.Independent(old, 1), td.Independent(new, 1)
    th.testing.assert_close(kl_per_state(joint_old, joint_new), th.tensor([0.5, 6.0]))


def scores_of(policy: Policy, log_prob: th.Tensor) -> th.Tensor:
    """grad log pi(a|s) of each sample, one row each, by one backward pass a sample."""
    parameters = list(policy.parameters())
    rows = [th.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True) for one in log_prob]
    return th.stack([nn.utils.parameters_to_vector(row) for row in rows])


@settings(max_examples=15, deadline=None)
@given(**SIZES, n_outputs=st.integers(1, 3), dimensions=st.integers(1, 3), seed=st.integers(0, 2**31 - 1))
def test_empirical_product_is_the_second_moment_of_the_scores(
    n_states: int, n_inputs: int, n_hidden: int, n_outputs: int, dimensions: int, seed: int
) -> None:
    th.manual_seed(seed)
    policy = Policy(n_inputs, n_hidden, n_outputs, gaussian)
    (distribution,) = policy(th.randn(n_states, n_inputs, dtype=th.float64))
    log_prob = distribution.log_prob(distribution.sample()).sum(1)
    scores = scores_of(policy, log_prob)
    product = empirical_fisher(log_prob, list(policy.parameters()), dimensions)
    columns = th.stack([product(row).clone() for row in th.eye(scores.shape[1], dtype=th.float64)])
    th.testing.assert_close(columns, scores.T @ scores / (n_states * dimensions), rtol=1e-8, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(**SIZES, n_outputs=st.integers(1, 3), with_log_std=st.booleans(), seed=st.integers(0, 2**31 - 1))
def test_empirical_product_of_an_mlp_is_the_generic_one(
    n_states: int, n_inputs: int, n_hidden: int, n_outputs: int, with_log_std: bool, seed: int
) -> None:
    th.manual_seed(seed)
    policy = Policy(n_inputs, n_hidden, n_outputs, gaussian)
    states = th.randn(n_states, n_inputs, dtype=th.float64)
    network = Mlp([policy.net[0], policy.net[2]], [policy.net[1]])
    outputs = policy.net(states)
    log_stds = policy.log_std.expand_as(outputs)
    log_prob_of_each = td.Normal(outputs, log_stds.exp()).log_prob(outputs.detach() + th.randn_like(outputs))
    log_prob = log_prob_of_each.sum(1)
    of_outputs, of_log_std = th.autograd.grad(log_prob.sum(), [outputs, log_stds], retain_graph=True)
    parameters = [*([policy.log_std] if with_log_std else []), *network.parameters]
    generic = empirical_fisher(log_prob, parameters, 2)
    closed = mlp_empirical_fisher(of_outputs, MlpJacobian(network, states), 2, of_log_std if with_log_std else None)
    vector = th.randn(sum(parameter.numel() for parameter in parameters), dtype=th.float64)
    th.testing.assert_close(closed(vector), generic(vector), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("head", HEADS)
@settings(max_examples=10, deadline=None)
@given(**SIZES, n_outputs=st.integers(1, 3), seed=st.integers(0, 2**31 - 1))
def test_curvature_of_each_state_is_its_own_matrix_between_the_vector(
    head: str, n_states: int, n_inputs: int, n_hidden: int, n_outputs: int, seed: int
) -> None:
    th.manual_seed(seed)
    policy = Policy(n_inputs, n_hidden, n_outputs, HEADS[head])
    states = th.randn(n_states, n_inputs, dtype=th.float64)
    parameters = list(policy.parameters())
    vector = th.randn(sum(parameter.numel() for parameter in parameters), dtype=th.float64)
    expected = th.stack([vector @ hessian_of_kl(policy, state[None]) @ vector for state in states])
    blocks = blocks_of(policy(states))
    th.testing.assert_close(gauss_newton_curvature(blocks, parameters, vector), expected, rtol=1e-8, atol=1e-9)
    with th.no_grad():
        old = policy(states)
    kls = [kl_per_state(one, other) for one, other in zip(old, policy(states), strict=True)]
    th.testing.assert_close(hessian_curvature(th.stack(kls).sum(0), parameters, vector), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_push_is_the_jacobian_of_each_output(head: str, grad: bool) -> None:
    """By one backward pass a number; conjugate gradients, which call it, switch gradients off."""
    th.manual_seed(0)
    policy = Policy(3, 4, 2, HEADS[head])
    parameters = list(policy.parameters())
    blocks = blocks_of(policy(th.randn(5, 3, dtype=th.float64)))
    vector = th.randn(sum(parameter.numel() for parameter in parameters), dtype=th.float64)
    with th.set_grad_enabled(grad):
        changes = reverse_push(blocks, parameters)(vector)
    for block, change in zip(blocks, changes, strict=True):
        rows = [
            nn.utils.parameters_to_vector(
                th.autograd.grad(number, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            )
            for number in block.output.reshape(-1)
            if number.requires_grad
        ]
        expected = th.stack(rows) @ vector if rows else th.zeros(block.output.numel(), dtype=th.float64)
        th.testing.assert_close(change, expected.view(block.output.shape), rtol=1e-9, atol=1e-11)


class Cube(th.autograd.Function):
    """Its backward leaves autograd: of the second derivative nothing is left but a zero."""

    @staticmethod
    def forward(ctx: Any, inputs: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(inputs)
        return inputs**3

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        (inputs,) = ctx.saved_tensors
        return 3 * inputs.detach() ** 2 * gradient.detach()


class CubeOnce(Cube):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        return Cube.backward(ctx, gradient)


def fused_attention(inputs: th.Tensor) -> th.Tensor:
    """Torch's own kernel for it has a first derivative alone."""
    heads = inputs[None, None].expand(1, 2, -1, -1)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return nn.functional.scaled_dot_product_attention(heads, heads, heads)[0, 0]


@pytest.mark.parametrize("function", [Cube.apply, CubeOnce.apply, fused_attention])
def test_what_can_not_be_differentiated_twice_is_refused(function: Callable[[th.Tensor], th.Tensor]) -> None:
    """Torch itself would give a product, which is wrong."""
    weight = th.randn(4, 4, dtype=th.float64, requires_grad=True)
    hidden = th.randn(5, 4, dtype=th.float64) @ weight
    distribution = td.Normal(function(hidden), 1.0)
    blocks = output_blocks(distribution)
    assert blocks is not None
    with pytest.raises(NotTwiceDifferentiableError, match="can't be differentiated twice"):
        reverse_push(blocks, [weight])
    with pytest.raises(NotTwiceDifferentiableError):
        gauss_newton_fisher(blocks, [weight])
    with pytest.raises(NotTwiceDifferentiableError):
        gauss_newton_curvature(blocks, [weight], th.ones(16, dtype=th.float64))
    kl = kl_per_state(td.Normal(distribution.loc.detach(), 1.0), distribution)
    with pytest.raises(NotTwiceDifferentiableError):
        hessian_fisher(kl.mean(), [weight])
    with pytest.raises(NotTwiceDifferentiableError):
        hessian_curvature(kl, [weight], th.ones(16, dtype=th.float64))
    with pytest.raises(NotTwiceDifferentiableError):
        empirical_fisher(distribution.log_prob(distribution.loc.detach()).sum(1), [weight])


def test_function_of_the_user_beside_the_parameters_does_not_matter() -> None:
    """What is computed from observations alone is constant."""
    weight = th.randn(4, 2, dtype=th.float64, requires_grad=True)
    inputs = Cube.apply(th.randn(5, 4, dtype=th.float64))
    blocks = output_blocks(td.Normal(inputs @ weight, 1.0))
    assert blocks is not None
    vector = th.randn(8, dtype=th.float64)
    th.testing.assert_close(reverse_push(blocks, [weight])(vector)[0], inputs @ vector.view(4, 2))


def test_push_may_be_given() -> None:
    """J v may be found in another way; the way back stays autograd's."""
    weight = th.randn(4, 2, dtype=th.float64, requires_grad=True)
    inputs = th.randn(5, 4, dtype=th.float64)
    blocks = (output_blocks(td.Normal(inputs @ weight, 2.0)) or [])[:1]
    vectors = list[th.Tensor]()

    def push(vector: th.Tensor) -> list[th.Tensor]:
        vectors.append(vector)
        return [inputs @ vector.view(4, 2)]

    vector = th.randn(8, dtype=th.float64)
    expected = (inputs.T @ inputs @ vector.view(4, 2) / 5 / 4 / 2).flatten()
    th.testing.assert_close(gauss_newton_fisher(blocks, [weight], push)(vector), expected)
    curvature = (inputs @ vector.view(4, 2)).pow(2).sum(1) / 4 / 2
    th.testing.assert_close(gauss_newton_curvature(blocks, [weight], vector, push), curvature)
    assert len(vectors) == 2


def test_sum_of_products_is_weighted() -> None:
    one, other = th.randn(3, 3), th.randn(3, 3)
    vector = th.randn(3)
    product = sum_of_products([lambda v: one @ v, lambda v: other @ v], [0.25, 0.75])
    th.testing.assert_close(product(vector), (0.25 * one + 0.75 * other) @ vector)
