"""Side by side with sb3_contrib.TRPO 2.9 on one and the same rollout."""

import copy
import inspect
from functools import partial
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from sb3_contrib.common.utils import conjugate_gradient_solver
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.torch_layers import FlattenExtractor

import sb3_trpo_plus
from sb3_trpo_plus.policies.distributions import action_distribution
from sb3_trpo_plus.trust_region.conjugate_gradient import conjugate_gradient
from tests.conftest import DISTRIBUTIONS, DoubleExtractor, collect, parameters_of, random_env


def twins(name: str, double: bool = False, **kwargs: Any) -> tuple[Any, Any]:
    """Theirs and ours: the same weights, the same rollout."""
    space, options = DISTRIBUTIONS[name]
    policy_kwargs = {
        "net_arch": [16, 16],
        "features_extractor_class": DoubleExtractor if double else FlattenExtractor,
        **options.get("policy_kwargs", {}),
    }
    settings = {"n_steps": 256, "batch_size": 64, "seed": 0, **options, **kwargs, "policy_kwargs": policy_kwargs}
    theirs = sb3_contrib.TRPO("MlpPolicy", random_env(space), **settings)
    ours = sb3_trpo_plus.TRPO("MlpPolicy", random_env(space), **settings)
    with th.no_grad():
        for parameter in theirs.policy.parameters():
            parameter.add_(0.2 * th.randn_like(parameter))
    if double:
        theirs.policy.double()
        ours.policy.double()
    ours.policy.load_state_dict(theirs.policy.state_dict())
    collect(theirs)
    ours._setup_learn(256)
    ours.rollout_buffer = copy.deepcopy(theirs.rollout_buffer)
    return theirs, ours


def their_direction(model: Any, max_iter: int, tolerance: float) -> th.Tensor:
    """
    sb3-contrib's own gradient, Hessian-vector product and solver, on the whole rollout.

    The solver's tolerance is the square of an absolute residual, and it divides zero by zero where it goes on too long.
    """
    rollout = next(model.rollout_buffer.get())
    actions = rollout.actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else rollout.actions
    with th.no_grad():
        old = copy.copy(model.policy.get_distribution(rollout.observations))
    distribution = model.policy.get_distribution(rollout.observations)
    advantages = (rollout.advantages - rollout.advantages.mean()) / (rollout.advantages.std() + 1e-8)
    objective = (advantages * th.exp(distribution.log_prob(actions) - rollout.old_log_prob)).mean()
    kl = sb3.kl_divergence(distribution, old).mean()
    parameters, gradient, kl_gradient, _ = model._compute_actor_grad(kl, objective)
    product = partial(model.hessian_vector_product, parameters, kl_gradient)
    residual_tol = (tolerance * gradient.norm().item()) ** 2
    return conjugate_gradient_solver(product, gradient, max_iter, residual_tol)


def our_direction(model: Any, monkeypatch: pytest.MonkeyPatch, max_steps: int, tolerance: float) -> th.Tensor:
    """The direction that train() itself solves for."""
    solutions = []

    def solve(*args: Any) -> Any:
        solutions.append(conjugate_gradient(*args))
        return solutions[-1]

    monkeypatch.setattr("sb3_trpo_plus.trust_region.step.conjugate_gradient", solve)
    model.cg_max_steps, model.cg_residual_tol, model.n_critic_updates = max_steps, tolerance, 0
    model.train()
    return solutions[0].solution


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("double", "tolerance"), [(False, 1e-3), (True, 1e-8)])
def test_search_directions_agree(name: str, double: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = twins(name, double)
    residual = tolerance * 1e-3
    # The buffer shuffles, and the mean of the advantages is a float32 sum whose rounding depends on the order.
    np.random.seed(0)
    expected = their_direction(theirs, 400, residual)
    np.random.seed(0)
    direction = our_direction(ours, monkeypatch, 400, residual)
    difference = th.linalg.vector_norm(direction - expected) / th.linalg.vector_norm(expected)
    assert difference <= tolerance


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_whole_updates_agree(name: str) -> None:
    """Same step of the policy and same critic after train(), from the same minibatches."""
    theirs, ours = twins(name, cg_max_steps=60)
    before = parameters_of(ours)
    for model in (theirs, ours):
        np.random.seed(0)
        model.train()
    for part, tolerance in (("actor", 2e-2), ("value", 1e-4)):
        names = [n for n in before if ("value" in n) == (part == "value")]
        one, other = (th.cat([(parameters_of(model)[n] - before[n]).flatten() for n in names]) for model in (theirs, ours))
        assert th.linalg.vector_norm(one) > 1e-3
        assert th.linalg.vector_norm(other - one) <= tolerance * th.linalg.vector_norm(one), part
    assert theirs.logger.name_to_value["train/is_line_search_success"] == 1.0
    tags = {"policy_objective": 2e-2, "value_loss": 1e-4, "explained_variance": 1e-6, "is_line_search_success": 0}
    for tag, tolerance in tags.items():
        expected = theirs.logger.name_to_value[f"train/{tag}"]
        assert ours.logger.name_to_value[f"train/{tag}"] == pytest.approx(expected, rel=tolerance, abs=1e-6), tag


def test_critics_with_a_shared_extractor_agree() -> None:
    class Shared(FlattenExtractor):
        def __init__(self, observation_space: spaces.Box) -> None:
            super().__init__(observation_space)
            self.layer = th.nn.Linear(4, 4)

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return th.tanh(self.layer(super().forward(observations)))

    space = random_env()
    settings: dict[str, Any] = {"n_steps": 128, "seed": 0, "policy_kwargs": {"features_extractor_class": Shared}}
    theirs, ours = sb3_contrib.TRPO("MlpPolicy", space, **settings), sb3_trpo_plus.TRPO("MlpPolicy", space, **settings)
    ours.policy.load_state_dict(theirs.policy.state_dict())
    collect(theirs)
    ours._setup_learn(128)
    ours.rollout_buffer = copy.deepcopy(theirs.rollout_buffer)
    for model in (theirs, ours):
        # A policy step of next to no size leaves the critics to be compared.
        model.target_kl = 1e-14
        np.random.seed(0)
        model.train()
    for name, value in parameters_of(theirs).items():
        th.testing.assert_close(parameters_of(ours)[name], value, rtol=1e-4, atol=1e-6)


def test_constructor_has_the_same_names_order_and_defaults() -> None:
    theirs = inspect.signature(sb3_contrib.TRPO.__init__).parameters
    ours = inspect.signature(sb3_trpo_plus.TRPO.__init__).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert {name: ours[name].default for name in theirs} == {name: theirs[name].default for name in theirs}
    new = [ours[name] for name in list(ours)[len(theirs) :]]
    assert [p.name for p in new][:3] == ["fisher_sub_sampling_factor", "cg_residual_tol", "ent_coef"]
    assert [p.name for p in new][3:] == ["fisher", "kl_constraint", "log_improvement_bound", "on_nonfinite"]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in new)


def test_policy_aliases_are_the_same_classes() -> None:
    assert sb3_trpo_plus.TRPO.policy_aliases == sb3_contrib.TRPO.policy_aliases


def test_kl_is_of_the_old_policy_to_the_new_one() -> None:
    """The paper's direction; sb3-contrib has the other, which is the same to second order only."""
    _, ours = twins("discrete")
    observations = next(ours.rollout_buffer.get()).observations
    old = action_distribution(ours.policy, observations)
    ours.train()
    new = action_distribution(ours.policy, observations)
    logged = ours.logger.name_to_value["train/kl_mean"]
    assert logged == pytest.approx(th.distributions.kl_divergence(old.distribution, new.distribution).mean().item(), rel=1e-4)
    assert logged != pytest.approx(th.distributions.kl_divergence(new.distribution, old.distribution).mean().item(), rel=1e-4)


@pytest.mark.parametrize("name", ["_compute_actor_grad", "hessian_vector_product"])
def test_overridden_methods_of_sb3_contrib_are_not_ignored_in_silence(name: str) -> None:
    assert hasattr(sb3_contrib.TRPO, name)
    with pytest.warns(UserWarning, match=f"Mine has {name}, which sb3_contrib.TRPO calls and this TRPO does not"):
        type("Mine", (sb3_trpo_plus.TRPO,), {name: lambda self: None})
