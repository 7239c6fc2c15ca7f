"""A quick share of ``benchmarks/random_steps.py``: each step is finite, within its region and improving, or exactly zero."""

import dataclasses
import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def campaign() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("random_steps")
    finally:
        sys.path.remove(str(BENCHMARKS))


random_steps = campaign()


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**62))
def test_random_step_keeps_every_promise(number: int) -> None:
    _, broken = random_steps.violations(random_steps.problem(number))
    assert broken == []


def test_problems_are_of_every_kind() -> None:
    problems = [random_steps.problem(number) for number in range(500)]
    for field, values in (
        ("kind", set(random_steps.MATRICES)),
        ("fault", set(random_steps.FAULTS)),
        ("algorithm", {"trpo", "trpo max", "npg"}),
    ):
        assert {getattr(problem, field) for problem in problems} == values
    outcomes = {random_steps.violations(problem)[0] for problem in problems}
    assert outcomes == {"step", "none", "exception"}


@pytest.mark.parametrize(("change", "words"), [(1e-3, "parameters changed"), (math.nan, "parameters are not finite")])
def test_a_step_that_breaks_a_promise_is_found(change: float, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the campaign would say of parameters that are not those that the step left."""
    problems = [random_steps.problem(number) for number in range(200)]
    refused = next(one for one in problems if random_steps.violations(one)[0] == "none" and one.start.isfinite().all())
    solve = random_steps.solve

    def off(one: Any) -> Any:
        parameters, *rest = solve(one)
        parameters[-1][0] += change + parameters[-1][0].abs()
        return parameters, *rest

    monkeypatch.setattr(random_steps, "solve", off)
    assert any(words in broken for broken in random_steps.violations(refused)[1])


def test_a_step_beyond_its_limit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [random_steps.problem(number) for number in range(500)]
    solve = random_steps.solve
    taken = next(one for one in problems if one.algorithm == "trpo" and one.kind == "definite" and solve(one)[1].accepted)
    smaller = dataclasses.replace(taken.settings, max_kl=solve(taken)[1].mean_kl / 2)
    outcome = solve(taken)
    monkeypatch.setattr(random_steps, "solve", lambda one: outcome)
    found = random_steps.violations(dataclasses.replace(taken, settings=smaller))[1]
    assert found == ["the reported KL is above its limit", "the KL is above its limit"]


def step_of(problem: Any) -> Any:
    return random_steps.solve(problem)[1]


@pytest.mark.parametrize(
    ("gradient", "words"),
    [(1e30, "objective is too large"), (1e-30, "objective is too small"), (0.0, "objective is zero")],
)
def test_reason_tells_sizes_from_numbers_that_are_none(gradient: float, words: str) -> None:
    one = next(p for p in map(random_steps.problem, range(500)) if p.fault == "none" and p.start.dtype == th.float32)
    report = step_of(dataclasses.replace(one, gradient=th.full_like(one.start, gradient)))
    assert not report.accepted
    assert report.reason.endswith(words)
