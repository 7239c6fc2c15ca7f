"""The constrained step and its line search, on problems whose answer is known in closed form."""

import math
from dataclasses import replace

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td

from sb3_trpo_plus.trust_region.line_search import Candidate, backtrack
from sb3_trpo_plus.trust_region.step import StepReport, StepSettings, natural_gradient_step, trust_region_step

OPTIONS = StepSettings(max_kl=0.01, damping=0.0, cg_max_steps=50, cg_residual_tol=1e-12, shrinking_factor=0.5, max_tries=10)


def quadratic(theta: th.nn.Parameter, a: th.Tensor, g: th.Tensor, **options: float) -> StepReport:
    """Maximise g'(theta - theta_old) where the KL is exactly (theta - theta_old)' A (theta - theta_old) / 2."""
    old = theta.detach().clone()

    def evaluate() -> Candidate:
        change = theta.detach() - old
        kl = (0.5 * change @ a @ change).item()
        return Candidate(g.dot(change).item(), kl, kl)

    return trust_region_step([theta], g, lambda v: a @ v, evaluate, 0.0, replace(OPTIONS, **options))  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 8), seed=st.integers(0, 2**31 - 1), max_kl=st.floats(1e-4, 10))
def test_linear_objective_and_quadratic_kl_give_the_lagrangian_solution(n: int, seed: int, max_kl: float) -> None:
    """max g'x s.t. x'Ax/2 <= delta has x = sqrt(2 delta / g'A^-1 g) A^-1 g, and the value sqrt(2 delta g'A^-1 g)."""
    generator = th.Generator().manual_seed(seed)
    root = th.randn(n, n, generator=generator, dtype=th.float64)
    a, g = root @ root.T + th.eye(n), th.randn(n, generator=generator, dtype=th.float64)
    theta = th.nn.Parameter(th.randn(n, generator=generator, dtype=th.float64))
    old, natural = theta.detach().clone(), th.linalg.solve(a, g)
    # The full step stands on the boundary, so rounding may put it a hair outside: shrink by a hair, not by half.
    report = quadratic(theta, a, g, max_kl=max_kl, shrinking_factor=1 - 1e-9)
    assert report.accepted
    expected = math.sqrt(2 * max_kl / g.dot(natural)) * natural
    th.testing.assert_close(theta.detach() - old, expected, rtol=1e-6, atol=1e-9)
    assert report.surrogate_new == pytest.approx(math.sqrt(2 * max_kl * g.dot(natural)), rel=1e-6)
    assert report.improvement_ratio == pytest.approx(1.0)
    assert report.mean_kl <= max_kl


def test_damping_enters_the_direction_and_the_step() -> None:
    theta, a, g = th.nn.Parameter(th.zeros(2)), th.diag(th.tensor([1.0, 4.0])), th.tensor([1.0, 1.0])
    report = quadratic(theta, a, g, damping=1.0)
    direction = th.tensor([1 / 2, 1 / 5])
    step = math.sqrt(2 * 0.01 / (direction @ (a + th.eye(2)) @ direction).item())
    th.testing.assert_close(theta.detach(), step * direction)
    assert report.step_size == pytest.approx(step)
    of_damping, of_fisher = (direction @ direction).item(), (direction @ a @ direction).item()
    assert report.damping_share == pytest.approx(of_damping / (of_damping + of_fisher))
    assert report.mean_kl == pytest.approx(0.01 * (1 - report.damping_share)), "the rest is the KL's"


@pytest.mark.parametrize(
    ("gradient", "surrogate_old", "words"),
    [
        ([0.0, 0.0], 0.0, "zero"),
        ([math.nan, 1.0], 0.0, "gradient of the surrogate objective is not finite"),
        ([1.0, 1.0], math.nan, "surrogate objective is not finite"),
    ],
)
def test_no_step_without_a_usable_gradient(gradient: list[float], surrogate_old: float, words: str) -> None:
    theta = th.nn.Parameter(th.ones(2))
    report = trust_region_step(
        [theta],
        th.tensor(gradient),
        lambda v: v,
        lambda: Candidate(1.0, 0.0, 0.0),
        surrogate_old,
        OPTIONS,
    )
    assert not report.accepted
    assert words in report.reason
    assert theta.tolist() == [1.0, 1.0]


def test_no_step_where_the_metric_is_not_positive() -> None:
    theta = th.nn.Parameter(th.ones(2))
    report = quadratic(theta, -th.eye(2), th.ones(2))
    assert not report.accepted
    assert "conjugate gradients" in report.reason
    assert theta.tolist() == [1.0, 1.0]


def test_expected_improvement_is_of_the_step_that_was_taken() -> None:
    """A KL of four times its quadratic model takes one halving; then the linear objective is worth half as much."""
    theta, g = th.nn.Parameter(th.zeros(2)), th.tensor([1.0, 1.0])

    def evaluate() -> Candidate:
        change = theta.detach()
        kl = (2 * change @ change).item()
        return Candidate(g.dot(change).item(), kl, 3 * kl)

    report = trust_region_step([theta], g, lambda v: v, evaluate, 0.0, replace(OPTIONS, shrinking_factor=0.499))
    assert report.line_search_steps == 2
    assert report.expected_improvement == pytest.approx(report.surrogate_new)
    assert report.step_size == pytest.approx(0.499 * math.sqrt(2 * 0.01 / 2))
    assert report.max_kl == pytest.approx(3 * report.mean_kl)
    assert report.gradient_norm == pytest.approx(math.sqrt(2))


def test_breakdown_of_conjugate_gradients_is_reported_with_a_step() -> None:
    theta, a = th.nn.Parameter(th.zeros(2)), th.diag(th.tensor([2.0, -1.0]))
    report = quadratic(theta, a, th.tensor([1.0, 0.1]))
    assert report.accepted
    assert "conjugate gradients stopped early: curvature p'Ap is -" in report.reason


def test_first_step_that_qualifies_is_taken() -> None:
    """KL = x^2 with limit 0.1 and L = x: of x = 1, 1/2, 1/4, ... the first within sqrt(0.1) is 1/4."""
    theta = th.nn.Parameter(th.zeros(1))
    result = backtrack(
        [theta], th.ones(1), lambda: Candidate(theta.item(), theta.item() ** 2, theta.item() ** 2), 0.0, 0.1, 0.5, 10
    )
    assert (theta.item(), result.tries, result.scale) == (0.25, 3, 0.25)


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (Candidate(1.0, 0.2, 0.2), "KL above the limit 4x"),
        (Candidate(0.0, 0.0, 0.0), "surrogate not improved 4x"),
        (Candidate(math.nan, 0.0, 0.0), "not finite 4x"),
        (Candidate(math.inf, 0.0, 0.0), "not finite 4x"),
        (Candidate(1.0, math.nan, 0.0), "not finite 4x"),
    ],
)
def test_failed_search_restores_to_the_bit_and_says_why(candidate: Candidate, words: str) -> None:
    parameters = [th.nn.Parameter(th.randn(3, 2)), th.nn.Parameter(th.randn(5))]
    before = [(p.detach().clone(), p.data_ptr()) for p in parameters]
    result = backtrack(parameters, th.randn(11), lambda: candidate, 0.0, 0.1, 0.5, 4)
    assert result.accepted is None
    assert words in result.reason
    for parameter, (value, pointer) in zip(parameters, before, strict=True):
        assert th.equal(parameter.detach(), value)
        assert parameter.data_ptr() == pointer


def test_interrupted_search_restores_to_the_bit() -> None:
    theta = th.nn.Parameter(th.randn(4))
    before = theta.detach().clone()

    def interrupt() -> Candidate:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backtrack([theta], th.ones(4), interrupt, 0.0, 0.1, 0.5, 4)
    assert th.equal(theta.detach(), before)


def test_accepted_step_keeps_the_storage_of_the_parameters() -> None:
    theta = th.nn.Parameter(th.zeros(2))
    view = theta.data
    backtrack([theta], th.ones(2), lambda: Candidate(1.0, 0.0, 0.0), 0.0, 0.1, 0.5, 4)
    assert view.tolist() == [1.0, 1.0]


def test_old_distribution_that_is_a_view_of_the_parameters_stays_old() -> None:
    """A policy may hand its parameter itself to the distribution; moving it must not move the old distribution too."""
    logits = th.nn.Parameter(th.zeros(3))
    old = td.Categorical(logits=logits.expand(2, 3), validate_args=False)
    old.logits = logits.expand(2, 3)
    kls = []

    def evaluate() -> Candidate:
        with th.no_grad():
            kl = td.kl_divergence(old, td.Categorical(logits=logits.expand(2, 3)))
        kls.append(kl.max().item())
        return Candidate(1.0, kls[-1], kls[-1])

    backtrack([logits], th.tensor([1.0, 0.0, 0.0]), evaluate, 0.0, 1.0, 0.5, 1)
    assert kls[0] > 0.01


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 5), n_states=st.integers(1, 4), damping=st.floats(0, 1), seed=st.integers(0, 2**31 - 1))
def test_constraint_on_the_maximum_is_met_where_the_model_of_the_worst_state_meets_it(
    n: int, n_states: int, damping: float, seed: int
) -> None:
    """With KLs that are quadratic in each state, the largest of them stands at the limit, less what the damping takes."""
    generator = th.Generator().manual_seed(seed)
    roots = th.randn(n_states, n, n, generator=generator, dtype=th.float64)
    metrics = roots @ roots.transpose(1, 2) + 0.1 * th.eye(n)
    g = th.randn(n, generator=generator, dtype=th.float64)
    theta = th.nn.Parameter(th.zeros(n, dtype=th.float64))

    def kls(change: th.Tensor) -> th.Tensor:
        return th.einsum("i,sij,j->s", change, metrics, change) / 2

    def evaluate() -> Candidate:
        kl = kls(theta.detach())
        return Candidate(g.dot(theta.detach()).item(), kl.mean().item(), kl.max().item())

    report = trust_region_step(
        [theta], g, lambda v: metrics.mean(0) @ v, evaluate, 0.0,
        replace(OPTIONS, damping=damping, shrinking_factor=1 - 1e-9),
        largest_curvature=lambda s: 2 * kls(s).max().item(),
    )  # fmt: skip
    assert report.accepted
    step = theta.detach()
    assert (kls(step).max() + damping * step.dot(step) / 2).item() == pytest.approx(0.01, rel=1e-6)
    assert report.max_kl <= 0.01
    direction = th.linalg.solve(metrics.mean(0) + damping * th.eye(n), g)
    th.testing.assert_close(step / step.norm(), direction / direction.norm(), rtol=1e-5, atol=1e-7)


def test_search_refuses_a_step_by_the_kl_that_is_constrained() -> None:
    theta = th.nn.Parameter(th.zeros(1))
    result = backtrack(
        [theta], th.ones(1), lambda: Candidate(1.0, 0.01, theta.item()), 0.0, 0.3, 0.5, 10, constrained="max_kl"
    )
    assert theta.item() == 0.25
    assert [scale for scale, _ in result.tried] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("step_size", [None, 0.7])
def test_natural_gradient_steps_are_taken_whatever_becomes_of_the_objective(step_size: float | None) -> None:
    theta, a, g = th.nn.Parameter(th.zeros(2)), th.diag(th.tensor([1.0, 4.0])), th.tensor([1.0, 1.0])
    report = natural_gradient_step(
        [theta], g, lambda v: a @ v, lambda: Candidate(-1.0, 5.0, 9.0), 0.0,
        StepSettings(max_kl=0.01, damping=1.0, cg_max_steps=10, cg_residual_tol=1e-10, step_size=step_size),
    )  # fmt: skip
    direction = th.tensor([1 / 2, 1 / 5])
    size = step_size or math.sqrt(2 * 0.01 / (direction @ (a + th.eye(2)) @ direction).item())
    th.testing.assert_close(theta.detach(), size * direction)
    assert report.accepted
    assert (report.surrogate_new, report.mean_kl, report.max_kl) == (-1.0, 5.0, 9.0)
    assert report.step_size == pytest.approx(size)


@pytest.mark.parametrize("candidate", [Candidate(math.nan, 0.0, 0.0), Candidate(0.0, math.inf, 0.0)])
def test_natural_gradient_step_to_a_policy_that_is_not_finite_is_not_taken(candidate: Candidate) -> None:
    theta = th.nn.Parameter(th.randn(3))
    before = theta.detach().clone()
    report = natural_gradient_step(
        [theta],
        th.ones(3),
        lambda v: v,
        lambda: candidate,
        0.0,
        StepSettings(max_kl=0.01, damping=0.0, cg_max_steps=10, cg_residual_tol=0.0),
    )
    assert not report.accepted
    assert "not finite" in report.reason
    assert th.equal(theta.detach(), before)


def test_candidate_without_a_maximum_is_refused_where_that_is_limited() -> None:
    theta = th.nn.Parameter(th.zeros(2))
    result = backtrack([theta], th.ones(2), lambda: Candidate(1.0, 0.0, math.nan), 0.0, 0.01, 0.5, 3, constrained="max_kl")
    assert result.accepted is None
    assert result.reason == "no step accepted (not finite 3x)"
    assert theta.tolist() == [0.0, 0.0]


def test_parameters_that_overflow_are_refused_though_the_outputs_are_finite() -> None:
    """As with a saturated activation: tanh of infinity is 1."""
    theta = th.nn.Parameter(th.full((2,), 3e38))
    result = backtrack([theta], theta.detach().clone(), lambda: Candidate(1.0, 0.0, 0.0), 0.0, 0.01, 1e-3, 2)
    assert [scale for scale, _ in result.tried] == [1.0, 1e-3]
    assert result.accepted is not None
    assert theta.isfinite().all()
