"""Backtracking along a search direction until the trust region's conditions hold."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch as th

from sb3_trpo_plus.trust_region.flat import unflatten


@dataclass(frozen=True)
class Candidate:
    """
    The policy at one point of the line search.

    :param surrogate: value of the surrogate objective
    :param mean_kl: KL(old || new), mean over states, nats
    :param max_kl: the same, maximum over states
    """

    surrogate: float
    mean_kl: float
    max_kl: float

    @property
    def is_finite(self) -> bool:
        """Whether the policy can be used at all."""
        return math.isfinite(self.surrogate) and math.isfinite(self.mean_kl)


@dataclass(frozen=True)
class LineSearchResult:
    """
    :param accepted: the candidate that the parameters now stand at; None when none qualified and they were restored
    :param scale: the factor of the full step that was taken, 0 when none
    :param reason: what became of the search, in words
    :param tried: the candidates looked at, in order, each with its factor of the full step
    """

    accepted: Candidate | None
    scale: float
    reason: str
    tried: tuple[tuple[float, Candidate], ...]

    @property
    def tries(self) -> int:
        """Candidates looked at."""
        return len(self.tried)


def backtrack(
    parameters: Sequence[th.Tensor],
    full_step: th.Tensor,
    evaluate: Callable[[], Candidate],
    surrogate_old: float,
    max_kl: float,
    shrinking_factor: float,
    max_tries: int,
    constrained: Literal["mean_kl", "max_kl"] = "mean_kl",
) -> LineSearchResult:
    """
    Take the first j with KL(old || new) <= max_kl and L > L_old at theta_old + shrinking_factor^j * full_step.

    If no j below ``max_tries`` qualifies, or ``evaluate`` raises, the parameters are put back as they were, to the bit. Their
    storage stays the same in any case.

    A candidate whose numbers or parameters are not finite does not qualify.

    Source: Schulman et al., "Trust Region Policy Optimization", 2015, appendix C.

    :param parameters: tensors to move, in place
    :param full_step: change of the flattened parameters at j = 0, shape (number of parameters,)
    :param evaluate: gives the candidate at the present values of the parameters
    :param surrogate_old: L_old, by the same computation as in ``evaluate``
    :param max_kl: limit on the KL, nats
    :param shrinking_factor: in (0, 1)
    :param max_tries: at least 1
    :param constrained: which KL of a candidate the limit is for, the mean over states or their maximum
    :return: the accepted candidate or the reason why there is none
    """
    originals = [parameter.data for parameter in parameters]
    changes = unflatten(full_step, originals)
    failures = {"KL above the limit": 0, "surrogate not improved": 0, "not finite": 0}
    accepted = False
    tried: list[tuple[float, Candidate]] = []
    try:
        for j in range(max_tries):
            scale = shrinking_factor**j
            # New storage for each try: the old distribution may be a view of the old one.
            for parameter, original, change in zip(parameters, originals, changes, strict=True):
                parameter.data = original + scale * change
            candidate = evaluate()
            tried.append((scale, candidate))
            kl = getattr(candidate, constrained)
            # A saturated activation makes finite outputs of infinite parameters.
            if not (candidate.is_finite and math.isfinite(kl) and all(bool(p.isfinite().all()) for p in parameters)):
                failures["not finite"] += 1
            elif kl > max_kl:
                failures["KL above the limit"] += 1
            elif candidate.surrogate <= surrogate_old:
                failures["surrogate not improved"] += 1
            else:
                accepted = True
                return LineSearchResult(candidate, scale, f"accepted after {j} backtracks", tuple(tried))
    finally:
        for parameter, original in zip(parameters, originals, strict=True):
            if accepted:
                original.copy_(parameter.data)
            parameter.data = original
    reason = ", ".join(f"{name} {count}x" for name, count in failures.items() if count)
    return LineSearchResult(None, 0.0, f"no step accepted ({reason})", tuple(tried))
