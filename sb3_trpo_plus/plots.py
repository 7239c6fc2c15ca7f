"""Plots of policy updates."""

import numpy as np
import numpy.typing as npt
import torch as th
from matplotlib.figure import Figure

from sb3_trpo_plus.algorithms.npg import NPG
from sb3_trpo_plus.algorithms.trpo import TRPO
from sb3_trpo_plus.policies.actor import actor_gradient, parameters_at
from sb3_trpo_plus.policies.distributions import action_distribution, distribution_put_back
from sb3_trpo_plus.rollouts.sample import Sample
from sb3_trpo_plus.trust_region.flat import unflatten

FloatArray = npt.NDArray[np.float64]
POINTS = 61


def plot_trust_region(model: NPG) -> Figure:
    """
    Draw the last policy update of a model along its search direction: the surrogate with its linear model, the KL with its
    quadratic model and its limit, computed on the rollout of that update, and every step that was tried.

    The model is not changed.

    Source: Schulman et al., "Trust Region Policy Optimization", 2015, appendix C.

    :param model: a TRPO, NPG or VineTRPO whose ``learn()`` has returned in this process
    :return: a figure with two panels, which can be saved with ``savefig`` or shown in a notebook
    :raises TypeError: the model is of another class, whose updates have no search direction
    :raises ValueError: the model has made no update in this process, the last one found no search direction, or its rollout
        has been overwritten
    """
    if not isinstance(model, NPG):
        raise TypeError(
            f"plot_trust_region draws an update along its search direction, and those of {type(model).__name__} have none: "
            "give it a TRPO, NPG or VineTRPO"
        )
    report = model.last_step
    if report is None:
        raise ValueError("The model has made no policy update in this process: call learn() first")
    if report.direction is None:
        raise ValueError(f"The last policy update had no search direction, there is nothing to draw: {report.reason}")
    sizes = np.linspace(0, 1.2 * max(size for size, _ in report.tried), POINTS)
    surrogates, mean_kls, max_kls = _along(model, report.direction, report.step_size, model._sample_of_last_step(), sizes)
    is_max = isinstance(model, TRPO) and model.kl_constraint == "max"

    figure = Figure(figsize=(8, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(sizes, surrogates - report.surrogate_old, color="tab:blue", linewidth=2, label="surrogate")
    left.plot(sizes, sizes * report.slope, "--", color="black", label="linear model")
    left.axhline(0, color="black", linewidth=0.8)
    left.set(ylabel="improvement of the surrogate", title="Objective")
    kls, name = (max_kls, "maximum KL") if is_max else (mean_kls, "mean KL")
    right.plot(sizes, kls, color="tab:blue", linewidth=2, label=name)
    model_of_kl = sizes**2 * report.curvature / 2
    right.plot(sizes, model_of_kl, "--", color="black", label="quadratic model, with damping")
    right.axhline(model.kl_limit, color="tab:red", linestyle=":", linewidth=2, label="limit, target_kl")
    right.set(ylabel="KL(old || new), nats", title="Constraint", ylim=(0, None))

    tried = [(size, candidate) for size, candidate in report.tried if candidate.is_finite]
    refused = tried[:-1] if report.accepted else tried
    for axes, values in (
        (left, [candidate.surrogate - report.surrogate_old for _, candidate in tried]),
        (right, [candidate.max_kl if is_max else candidate.mean_kl for _, candidate in tried]),
    ):
        if refused:
            places = [size for size, _ in refused]
            axes.plot(places, values[: len(refused)], "x", color="tab:red", ms=9, mew=2, label="tried, refused")
        if report.accepted:
            axes.plot(tried[-1][0], values[-1], "o", color="tab:green", ms=9, label="accepted")
        axes.set(xlabel="step, in multiples of the search direction", xlim=(0, sizes[-1]))
        axes.grid(alpha=0.3)
        # Below, since the data may be anywhere.
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.15), frameon=False)
    return figure


def _along(
    model: NPG, direction: th.Tensor, step_taken: float, sample: Sample, sizes: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Surrogate, mean and maximum KL at steps of these sizes from the old policy; NaN where the outputs overflow."""
    was_training = model.policy.training
    model.policy.set_training_mode(False)
    try:
        with distribution_put_back(model.policy):
            distribution = action_distribution(model.policy, sample.observations)
            parameters, _ = actor_gradient(model.policy, model._surrogate(distribution, sample))
            changes = unflatten(direction, parameters)
            start = [p.detach() - step_taken * change for p, change in zip(parameters, changes, strict=True)]
            with th.no_grad(), parameters_at(parameters, start):
                old = action_distribution(model.policy, sample.observations)
            candidates = []
            for size in sizes.tolist():
                there = [p + size * change for p, change in zip(start, changes, strict=True)]
                with parameters_at(parameters, there):
                    candidates.append(model._candidate(sample, old))
    finally:
        model.policy.set_training_mode(was_training)
    surrogates, mean_kls, max_kls = np.array([(one.surrogate, one.mean_kl, one.max_kl) for one in candidates]).T
    return surrogates, mean_kls, max_kls
