"""
A million random steps: does each stay finite, within the trust region and improving, or is it exactly zero with its reason?

A problem is a matrix (definite with a condition number up to 1e12, singular, indefinite by rounding, indefinite, zero), a
gradient (also in the matrix's null space, with NaN, zero), scales from 1e-30 to 1e30, the settings of a step, and in half of
them faults: products and evaluations that give NaN or infinity now and then, are noisy, or fail. The true surrogate and KL are
known in closed form, so what the step did is checked against them in float64. One row of the table is ten thousand problems
that their number alone determines.

    python benchmarks/random_steps.py            # what is missing of a million (half an hour), results/random_steps.csv
    python benchmarks/random_steps.py --table    # only print the table
"""

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import results_file
import torch as th

from sb3_trpo_plus.trust_region.flat import flatten
from sb3_trpo_plus.trust_region.line_search import Candidate
from sb3_trpo_plus.trust_region.step import StepReport, StepSettings, natural_gradient_step, trust_region_step

RESULTS = Path(__file__).parent / "results" / "random_steps.csv"
PROBLEMS, IN_A_ROW = 1_000_000, 10_000
MATRICES = ("definite", "singular", "indefinite by rounding", "indefinite", "zero")
FAULTS = ("none", "product", "noise", "evaluation", "exception")
BAD = (math.nan, math.inf, -math.inf)
# Of the KL that is computed from the candidate's parameters in float64, over that which the step saw in their own precision.
ROUNDING = {th.float32: 1e-4, th.float64: 1e-9}


@dataclass(frozen=True)
class Problem:
    """
    :param matrix: of the KL, (theta - theta_old)' A (theta - theta_old) / 2, shape (n, n)
    :param gradient: of the surrogate, which is linear but for its bend, shape (n,)
    :param bend: the surrogate is g'x - bend x'x
    :param stiffening: the KL is the quadratic one times 1 + stiffening x'x
    :param start: theta_old, shape (n,)
    :param settings: of the step
    :param algorithm: "trpo", "trpo max" (the constraint is on twice the mean KL) or "npg"
    :param kind: the matrix's
    :param fault: which of ``FAULTS``
    :param when: the call of the product or the evaluation in which the fault happens, from 1
    """

    matrix: th.Tensor
    gradient: th.Tensor
    bend: float
    stiffening: float
    start: th.Tensor
    settings: StepSettings
    algorithm: str
    kind: str
    fault: str
    when: int


class FaultError(Exception):
    """That of a problem's own."""


def problem(number: int) -> Problem:
    """The problem of a number."""
    draw = random.Random(number)
    generator = th.Generator().manual_seed(number)
    n, dtype = draw.randint(1, 12), draw.choice([th.float32, th.float32, th.float64])
    kind, fault = draw.choice(MATRICES), draw.choice(["none"] * 4 + list(FAULTS))

    def normal(*shape: int) -> th.Tensor:
        return th.randn(*shape, generator=generator, dtype=th.float64)

    def scale(widest: float) -> float:
        return 1.0 if draw.random() < 0.4 else 10.0 ** draw.uniform(-widest, widest)

    basis, _ = th.linalg.qr(normal(n, n))
    eigenvalues = th.logspace(0, -draw.uniform(0, 12), n, dtype=th.float64)
    if kind == "singular":
        eigenvalues[draw.randint(0, n - 1) :] = 0
    elif kind == "indefinite by rounding":
        eigenvalues[-1] = -1e-7 * draw.random()
    elif kind == "indefinite":
        eigenvalues[-1] = -draw.random()
    elif kind == "zero":
        eigenvalues[:] = 0
    matrix = (basis @ th.diag(eigenvalues) @ basis.T) * scale(30)
    gradient = normal(n) if draw.random() < 0.7 else basis[:, -1].clone()
    gradient *= scale(30)
    if draw.random() < 0.02:
        gradient[draw.randrange(n)] = draw.choice([0.0, math.nan, math.inf])
    if draw.random() < 0.01:
        gradient[:] = 0
    settings = StepSettings(
        max_kl=10.0 ** draw.uniform(-8, 2),
        damping=draw.choice([0.0, 0.0, 0.1, 10.0 ** draw.uniform(-10, 5)]),
        cg_max_steps=draw.randint(1, 20),
        cg_residual_tol=draw.choice([0.0, 1e-10, 1e-5, 0.1]),
        shrinking_factor=draw.uniform(0.05, 0.95),
        max_tries=draw.randint(1, 12),
        step_size=None,
    )
    algorithm = draw.choice(["trpo", "trpo", "trpo max", "npg"])
    return Problem(
        matrix.to(dtype),
        gradient.to(dtype),
        draw.choice([0.0, scale(3)]),
        draw.choice([0.0, scale(3)]),
        (normal(n) * draw.choice([0.0, 1.0, scale(37)])).to(dtype),
        settings,
        algorithm,
        kind,
        fault,
        draw.randint(1, 6),
    )


def solve(one: Problem) -> tuple[list[th.Tensor], StepReport | None, Candidate | None]:
    """
    :return: the parameters afterwards, what the step reports, None if it failed with the problem's own exception, and the
        candidate that was the last
    """
    n = len(one.start)
    pieces = [one.start[: n // 2].clone(), one.start[n // 2 :].clone()]
    old, calls, last = one.start, Counter[str](), list[Candidate]()
    noise = random.Random(one.when)

    def faulty(which: str) -> bool:
        calls[which] += 1
        return one.fault == which and calls[which] >= one.when and noise.random() < 0.5

    def product(vector: th.Tensor) -> th.Tensor:
        result = one.matrix @ vector
        if faulty("product"):
            result[noise.randrange(n)] = noise.choice(BAD)
        if one.fault == "noise":
            result *= 1 + 1e-3 * (noise.random() - 0.5)
        return result

    def evaluate() -> Candidate:
        if faulty("exception"):
            raise FaultError
        x = flatten(pieces) - old
        square = x.dot(x).item()
        kl = 0.5 * x.dot(one.matrix @ x).item() * (1 + one.stiffening * square)
        numbers = [one.gradient.dot(x).item() - one.bend * square, kl, 2 * kl]
        if faulty("evaluation"):
            numbers[noise.randrange(3)] = noise.choice(BAD)
        last.append(Candidate(*numbers))
        return last[-1]

    def curvature(direction: th.Tensor) -> float:
        return 2 * direction.dot(one.matrix @ direction).item()

    try:
        if one.algorithm == "npg":
            report = natural_gradient_step(pieces, one.gradient, product, evaluate, 0.0, one.settings)
        else:
            limit: Callable[[th.Tensor], float] | None = curvature if one.algorithm == "trpo max" else None
            report = trust_region_step(pieces, one.gradient, product, evaluate, 0.0, one.settings, limit)
    except FaultError:
        return pieces, None, None
    return pieces, report, last[-1] if last else None


def violations(one: Problem) -> tuple[str, list[str]]:
    """
    :return: what became of the problem, in a word, and every promise that was not kept
    """
    parameters, report, candidate = solve(one)
    after, broken = flatten(parameters), []
    if report is None:
        return "exception", [] if th.equal(after, one.start) else ["an exception left the parameters changed"]
    if not th.isfinite(after).all() and th.isfinite(one.start).all():
        broken.append("parameters are not finite")
    numbers = (report.mean_kl, report.step_size, report.surrogate_new, report.slope, report.curvature, report.damping_share)
    if not all(map(math.isfinite, (*numbers, report.cg_relative_residual if report.accepted else 0.0))):
        broken.append("the report is not finite")
    if not report.reason:
        broken.append("there is no reason")
    if not report.accepted:
        if not th.equal(after, one.start):
            broken.append("no step was accepted, and the parameters changed")
        if (report.mean_kl, report.max_kl, report.step_size) != (0, 0, 0) or report.surrogate_new != report.surrogate_old:
            broken.append("no step was accepted, and the report has one")
        return "none", broken
    assert candidate is not None
    if one.algorithm == "npg":
        return "step", broken
    x = after.double() - one.start.double()
    square = x.dot(x).item()
    factor = {"trpo": 1.0, "trpo max": 2.0}[one.algorithm]
    kl = factor * 0.5 * x.dot(one.matrix.double() @ x).item() * (1 + one.stiffening * square)
    magnitude = factor * 0.5 * (x.abs() @ one.matrix.double().abs() @ x.abs()).item() * (1 + one.stiffening * square)
    rounding = ROUNDING[one.start.dtype] * magnitude
    if not (report.max_kl if one.algorithm == "trpo max" else report.mean_kl) <= one.settings.max_kl:
        broken.append("the reported KL is above its limit")
    if not kl <= one.settings.max_kl + rounding:
        broken.append("the KL is above its limit")
    if not report.surrogate_new > report.surrogate_old:
        broken.append("the reported surrogate has not improved")
    gained = one.gradient.double().dot(x).item() - one.bend * square
    size = (one.gradient.double().abs() @ x.abs()).item() + one.bend * square
    if not gained > -ROUNDING[one.start.dtype] * size:
        broken.append("the surrogate has not improved")
    if (report.surrogate_new, report.mean_kl) != (candidate.surrogate, candidate.mean_kl):
        broken.append("the report is not of the last candidate")
    return "step", broken


def in_row(row: int) -> dict[str, Any]:
    """Ten thousand problems."""
    th.set_num_threads(1)
    outcomes, broken, example = Counter[str](), Counter[str](), ""
    for number in range(row * IN_A_ROW, (row + 1) * IN_A_ROW):
        outcome, found = violations(problem(number))
        outcomes[outcome] += 1
        broken.update(found)
        example = example or (f"{number}" if found else "")
    return {
        "row": row,
        "problems": IN_A_ROW,
        **{outcome: outcomes[outcome] for outcome in ("step", "none", "exception")},
        "violations": sum(broken.values()),
        "which": "; ".join(f"{words} {count}x" for words, count in sorted(broken.items())),
        "first": example,
        **results_file.described(),
    }


def print_table() -> None:
    """Sums over the rows."""
    rows = results_file.read(RESULTS)
    sums = {name: sum(int(row[name]) for row in rows) for name in ("problems", "step", "none", "exception", "violations")}
    print("| problems | a step | none, with its reason | own exception passed on | promises broken |")
    print("|---|---|---|---|---|")
    print("|", " | ".join(f"{number:,}" for number in sums.values()), "|")


def main() -> None:
    args = results_file.parser(__doc__).parse_args()
    if not args.table:
        done = {int(row["row"]) for row in results_file.read(RESULTS)}
        missing = [row for row in range(PROBLEMS // IN_A_ROW) if row not in done]
        results_file.run_all(RESULTS, in_row, missing, args.jobs)
    print_table()


if __name__ == "__main__":
    main()
