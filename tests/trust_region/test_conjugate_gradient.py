"""Conjugate gradients against a direct solve."""

import math

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_trpo_plus.trust_region.conjugate_gradient import CGResult, conjugate_gradient


def positive_definite(n: int, condition: float, seed: int, dtype: th.dtype = th.float64) -> th.Tensor:
    """A random symmetric matrix with eigenvalues from 1 to the condition number."""
    generator = th.Generator().manual_seed(seed)
    basis, _ = th.linalg.qr(th.randn(n, n, generator=generator, dtype=th.float64))
    eigenvalues = th.logspace(0, math.log10(condition), n, dtype=th.float64)
    return (basis @ th.diag(eigenvalues) @ basis.T).to(dtype)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 30), log_condition=st.floats(0, 4), seed=st.integers(0, 2**31 - 1))
def test_solution_is_that_of_a_direct_solve(n: int, log_condition: float, seed: int) -> None:
    a = positive_definite(n, 10**log_condition, seed)
    b = th.randn(n, generator=th.Generator().manual_seed(seed + 1), dtype=th.float64)
    result = conjugate_gradient(lambda v: a @ v, b, max_steps=50 * n, residual_tol=1e-13)
    assert result.breakdown is None
    th.testing.assert_close(result.solution, th.linalg.solve(a, b), rtol=1e-7, atol=1e-9)
    th.testing.assert_close(result.product, a @ result.solution)


@settings(max_examples=50, deadline=None)
@given(tol=st.floats(1e-6, 0.5), seed=st.integers(0, 2**31 - 1))
def test_stops_at_the_first_iterate_within_the_relative_residual(tol: float, seed: int) -> None:
    a, b = positive_definite(20, 1e3, seed), th.ones(20, dtype=th.float64)
    result = conjugate_gradient(lambda v: a @ v, b, max_steps=1000, residual_tol=tol)
    assert result.relative_residual <= tol * (1 + 1e-6)
    shorter = conjugate_gradient(lambda v: a @ v, b, max_steps=max(1, result.iterations - 1), residual_tol=0.0)
    assert result.iterations == 1 or shorter.relative_residual > tol * (1 - 1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_tolerance_is_relative(scale: float) -> None:
    a, b = positive_definite(10, 100, 0), scale * th.ones(10, dtype=th.float64)
    assert conjugate_gradient(lambda v: a @ v, b, 100, 1e-3).iterations == (
        conjugate_gradient(lambda v: a @ v, b / scale, 100, 1e-3).iterations
    )


def test_stops_at_the_limit_and_counts() -> None:
    a, b, calls = positive_definite(50, 1e6, 0), th.ones(50, dtype=th.float64), []
    result = conjugate_gradient(lambda v: calls.append(1) or a @ v, b, max_steps=7, residual_tol=0.0)  # type: ignore[func-returns-value]
    assert result.iterations == 7
    assert len(calls) == 7 + 1, "one product an iteration, one for the returned solution"


def test_residual_is_the_true_one_where_the_recursion_drifts() -> None:
    a, b = positive_definite(100, 1e6, 0, th.float32), th.ones(100)
    result = conjugate_gradient(lambda v: a @ v, b, max_steps=400, residual_tol=1e-7)
    true = th.linalg.vector_norm(b - a @ result.solution) / th.linalg.vector_norm(b)
    assert result.relative_residual == pytest.approx(true.item(), rel=1e-3)


def test_solution_is_right_though_the_recursion_went_wrong() -> None:
    """Five products that are off by a thousandth leave the recursion's residual wrong for good; the check finds out."""
    a, b, calls = positive_definite(20, 100, 0), th.ones(20, dtype=th.float64), []

    def product(v: th.Tensor) -> th.Tensor:
        calls.append(1)
        return a @ v * (1.001 if len(calls) <= 5 else 1.0)

    result = conjugate_gradient(product, b, max_steps=200, residual_tol=1e-10)
    assert result.relative_residual <= 1e-10
    th.testing.assert_close(result.solution, th.linalg.solve(a, b), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_float32_squares_do_not_underflow_or_overflow(scale: float) -> None:
    a, b = positive_definite(10, 100, 0, th.float32), th.ones(10)
    result = conjugate_gradient(lambda v: a @ v, scale * b, 100, 1e-5)
    assert result.relative_residual <= 1e-4
    th.testing.assert_close(result.solution / scale, th.linalg.solve(a, b), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(10))
def test_accuracy_holds_where_the_tolerance_is_below_what_rounding_allows(seed: int) -> None:
    """Error within the condition number times the rounding unit, also after many more iterations than were of use."""
    a, b = positive_definite(20, 1e4, seed), th.randn(20, generator=th.Generator().manual_seed(seed), dtype=th.float64)
    result = conjugate_gradient(lambda v: a @ v, b, max_steps=1000, residual_tol=0.0)
    exact = th.linalg.solve(a, b)
    assert th.linalg.vector_norm(result.solution - exact) <= 1e4 * 1e-15 * 10 * th.linalg.vector_norm(exact)


def test_negative_curvature_ends_it_with_the_last_solution() -> None:
    a, b = th.diag(th.tensor([2.0, -1.0])), th.tensor([1.0, 0.1])
    result = conjugate_gradient(lambda v: a @ v, b, max_steps=10, residual_tol=0.0)
    assert result.breakdown is not None
    assert "p'Ap" in result.breakdown
    assert th.isfinite(result.solution).all()
    b = th.tensor([0.0, 1.0])
    result = conjugate_gradient(lambda v: a @ v, b, max_steps=10, residual_tol=0.0)
    assert (result.iterations, result.solution.tolist()) == (0, [0.0, 0.0])
    assert result.breakdown is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_product_ends_it(bad: float) -> None:
    calls = []

    def product(v: th.Tensor) -> th.Tensor:
        calls.append(1)
        return v * th.arange(1, 4) if len(calls) < 2 else v * bad

    result = conjugate_gradient(product, th.ones(3), max_steps=10, residual_tol=0.0)
    assert result.iterations == 1
    assert result.breakdown is not None
    assert th.isfinite(result.solution).all()


def test_zero_right_hand_side_is_solved_by_zero() -> None:
    result = conjugate_gradient(lambda v: v, th.zeros(3), max_steps=10, residual_tol=1e-5)
    assert (result.iterations, result.relative_residual) == (0, 0.0)
    assert not result.solution.any()


def test_argument_is_not_changed() -> None:
    b = th.tensor([1.0, 2.0])
    conjugate_gradient(lambda v: 3 * v, b, 10, 0.0)
    assert b.tolist() == [1.0, 2.0]


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU, where branching on a number would wait for the queue of work."""
    monkeypatch.setattr("sb3_trpo_plus.trust_region.conjugate_gradient._can_look", lambda tensor: False)


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("seed", range(20))
def test_without_looking_at_numbers_the_solution_is_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = positive_definite(20, 10.0 ** (seed % 5), seed), th.randn(20, generator=th.Generator().manual_seed(seed)).double()
    blind = conjugate_gradient(lambda v: a @ v, b, 200, 1e-9)
    monkeypatch.undo()
    looking = conjugate_gradient(lambda v: a @ v, b, 200, 1e-9)
    assert blind.iterations == looking.iterations
    th.testing.assert_close(blind.solution, looking.solution, rtol=1e-6, atol=1e-9)
    th.testing.assert_close(blind.product, a @ blind.solution)
    assert blind.relative_residual == pytest.approx(looking.relative_residual, abs=1e-10)


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_without_looking_a_breakdown_keeps_the_last_solution(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def solve() -> CGResult:
        calls: list[int] = []

        def product(v: th.Tensor) -> th.Tensor:
            calls.append(1)
            return v * th.arange(1.0, 4.0) * (1.0 if len(calls) < 3 else bad)

        return conjugate_gradient(product, th.ones(3), 10, 0.0)

    blind = solve()
    monkeypatch.undo()
    looking = solve()
    assert (blind.iterations, blind.breakdown) == (looking.iterations, looking.breakdown) == (2, blind.breakdown)
    assert blind.breakdown is not None
    th.testing.assert_close(blind.solution, looking.solution)


@pytest.mark.usefixtures("accelerator")
def test_without_looking_zero_is_solved_by_zero() -> None:
    result = conjugate_gradient(lambda v: v, th.zeros(3), 10, 1e-5)
    assert (result.iterations, result.relative_residual) == (0, 0.0)
    assert not result.solution.any()


def test_product_may_use_its_memory_again() -> None:
    a, b, memory = positive_definite(20, 100, 0), th.ones(20, dtype=th.float64), th.empty(20, dtype=th.float64)
    result = conjugate_gradient(lambda v: th.mv(a, v, out=memory), b, 100, 1e-12)
    th.testing.assert_close(result.solution, th.linalg.solve(a, b), rtol=1e-8, atol=1e-10)
    th.testing.assert_close(result.product, a @ result.solution)
