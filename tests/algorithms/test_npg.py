"""The natural policy gradient: what it has from Kakade, from TRPO without the line search, and of its own."""

import copy
import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import configure

from sb3_trpo_plus import NPG, TRPO
from sb3_trpo_plus.policies.actor import actor_gradient
from sb3_trpo_plus.policies.distributions import action_distribution
from sb3_trpo_plus.policies.fisher import empirical_fisher_vector_product, fisher_vector_product
from tests.algorithms.members import actor_of, make
from tests.conftest import DISTRIBUTIONS, DoubleExtractor, collect, parameters_of, read_log


@pytest.mark.parametrize("name", ["line_search_max_iter", "line_search_shrinking_factor", "kl_constraint"])
def test_npg_has_no_argument_of_the_line_search(name: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        make("npg", **{name: 1})


@pytest.mark.parametrize("name", ["box", "discrete", "multi_discrete", "multi_binary"])
def test_npg_is_trpo_whose_first_step_is_accepted(name: str) -> None:
    # What the damping adds to the quadratic model leaves room for the true KL.
    npg = collect(make("npg", name, cg_damping=1.0))
    npg.train()
    trpo = collect(make("empirical", name, fisher="gauss_newton", cg_damping=1.0))
    trpo.train()
    assert trpo.last_step.reason == "accepted after 0 backtracks"
    assert npg.last_step.step_size == trpo.last_step.step_size
    assert all(th.equal(value, parameters_of(trpo)[key]) for key, value in parameters_of(npg).items())


def test_npg_takes_kakades_step_of_a_fixed_size() -> None:
    """theta + alpha F^-1 g, with the explicit Fisher matrix of a small policy."""
    policy_kwargs = {"net_arch": [3], "features_extractor_class": DoubleExtractor}
    model = make("npg fixed", policy_kwargs=policy_kwargs, cg_damping=1e-3, cg_max_steps=200, cg_residual_tol=1e-12)
    model.policy.double()
    collect(model)
    before = actor_of(model)
    state = np.random.get_state()
    sample = model._sample()
    np.random.set_state(state)
    surrogate = model._surrogate(action_distribution(model.policy, sample.observations), sample)
    parameters, gradient = actor_gradient(model.policy, surrogate)
    product = fisher_vector_product(model.policy, sample.observations, parameters)
    matrix = th.stack([product(row).clone() for row in th.eye(len(gradient), dtype=th.float64)])
    model.train()
    natural = th.linalg.solve(matrix + 1e-3 * th.eye(len(gradient), dtype=th.float64), gradient)
    th.testing.assert_close(actor_of(model) - before, 0.1 * natural, rtol=1e-5, atol=1e-8)


def test_npg_step_may_exceed_the_limit_that_trpo_keeps() -> None:
    arguments = {"target_kl": 0.5, "cg_damping": 0.0, "cg_max_steps": 50}
    npg, trpo = collect(make("npg", **arguments)), collect(make("empirical", fisher="gauss_newton", **arguments))
    npg.train()
    trpo.train()
    assert npg.last_step.mean_kl > 0.5 >= trpo.last_step.mean_kl


@pytest.mark.parametrize("name", ["box", "discrete", "multi_discrete", "multi_binary", "gsde", "gsde_squashed"])
def test_empirical_and_gauss_newton_products_agree_as_samples_grow(name: str) -> None:
    """Their difference is the mean of N independent matrices of mean zero: it falls as 1 / sqrt(N)."""
    policy_kwargs = {"net_arch": [4], **DISTRIBUTIONS[name][1].get("policy_kwargs", {})}
    model = make("empirical", name, policy_kwargs=policy_kwargs)
    th.manual_seed(0)
    errors = {}
    for n in (500, 50_000):
        # Few states, often: they are the same in both forms, so only the actions' noise is left.
        observations = th.linspace(-1, 1, 20).reshape(5, 4).repeat(n // 5, 1)
        distribution = action_distribution(model.policy, observations)
        actions = distribution.distribution.sample() if "gsde" in name else distribution.sample()
        actions = th.tanh(actions) if "squashed" in name else actions
        parameters, _ = actor_gradient(model.policy, distribution.log_prob(actions).mean())
        gauss_newton = fisher_vector_product(model.policy, observations[:5], parameters)
        empirical = empirical_fisher_vector_product(model.policy, observations, actions, parameters)
        eye = th.eye(sum(parameter.numel() for parameter in parameters))
        expected, estimated = (th.stack([product(row).clone() for row in eye]) for product in (gauss_newton, empirical))
        errors[n] = ((estimated - expected).norm() / expected.norm()).item()
    assert errors[50_000] < 0.1
    assert errors[50_000] < errors[500] / 4


def test_empirical_and_gauss_newton_directions_agree_as_samples_grow() -> None:
    def cosine(n_steps: int) -> float:
        directions = []
        for fisher in ("empirical", "gauss_newton"):
            model = make(
                "empirical", "discrete", fisher=fisher, n_steps=n_steps, policy_kwargs={"net_arch": [4]}, cg_damping=0.01
            )
            collect(model).train()
            directions.append(model.last_step.direction)
        return th.cosine_similarity(*directions, dim=0).item()

    assert cosine(64) < cosine(8192)
    assert cosine(8192) > 0.98


@pytest.mark.parametrize("name", ["box", "discrete"])
def test_improvement_bound_is_the_papers_with_the_rollouts_estimates(name: str, tmp_path: Path) -> None:
    """L(new) - L(old) - 4 eps gamma / (1 - gamma)^2 max KL, written out with torch's own KL of the joint action."""
    model = make("empirical", name, fisher="gauss_newton", log_improvement_bound=True, gamma=0.9)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    collect(model)
    rollout = next(model.rollout_buffer.get())
    actions = rollout.actions.long().flatten() if name == "discrete" else rollout.actions
    old_policy = copy.deepcopy(model.policy)
    model.train()
    with th.no_grad():
        old = action_distribution(old_policy, rollout.observations)
        new = action_distribution(model.policy, rollout.observations)
        ratio = th.exp(new.log_prob(actions) - old.log_prob(actions))
        gain = ((ratio - 1) * rollout.advantages).mean().item() / 0.1
        kl = th.distributions.kl_divergence(old.distribution, new.distribution)
        joint = kl.sum(1) if name == "box" else kl
    bound = gain - 4 * rollout.advantages.abs().max().item() * 0.9 / 0.01 * joint.max().item()
    model.logger.dump()
    assert float(read_log(tmp_path)["improvement_lower_bound"]) == pytest.approx(bound, rel=1e-3)


def test_refused_step_of_npg_is_a_warning() -> None:
    model = collect(make("npg fixed", step_size=1e38))
    before = actor_of(model)
    with pytest.warns(UserWarning, match="the policy stays as it was: no step accepted .not finite 1x"):
        model.train()
    assert th.equal(actor_of(model), before)
    assert model.logger.name_to_value["train/skipped_policy_not_finite"] == 1
    assert not model.last_step.accepted
    assert len(model.last_step.tried) == 1


@pytest.mark.parametrize("member", ["npg", "empirical"])
def test_limit_of_zero_leaves_the_policy_as_it_is(member: str) -> None:
    model = collect(make(member, target_kl=lambda progress: 0.01 * progress))
    model._current_progress_remaining = 0.0
    before = actor_of(model)
    model.train()
    assert th.equal(actor_of(model), before)


def test_bound_without_discount_is_none() -> None:
    model = collect(make("empirical", log_improvement_bound=True, gamma=lambda progress: 1.0))
    model.train()
    assert model.logger.name_to_value["train/improvement_lower_bound"] == -math.inf


def test_npg_is_the_base_and_has_nothing_of_the_line_search() -> None:
    assert TRPO.__bases__ == (NPG,)
    model = make("npg").learn(64)
    assert not [name for name in vars(model) if "line_search" in name or name == "kl_constraint"]
    assert "step_size" not in inspect.signature(TRPO).parameters
    assert inspect.signature(NPG).parameters.keys() - inspect.signature(TRPO).parameters.keys() == {"step_size"}
    assert make("trpo").step_size is None


@pytest.mark.parametrize("member", ["npg", "npg fixed", "trpo"])
def test_surrogate_that_overflows_is_no_direction(member: str) -> None:
    model = collect(make(member))
    model.rollout_buffer.log_probs[:] = -1e4
    before = actor_of(model)
    with pytest.warns(UserWarning, match="the policy stays as it was: the surrogate objective is not finite$"):
        model.train()
    assert th.equal(actor_of(model), before)
    assert model.logger.name_to_value["train/skipped_no_direction"] == 1
    assert model.last_step.direction is None
    assert model.last_step.tried == ()
