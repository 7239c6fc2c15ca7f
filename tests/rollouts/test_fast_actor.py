"""Actions in NumPy: the policy's own outputs, and noise that makes of them what torch's samplers draw."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.policies.plain import ELEMENTWISE
from sb3_trpo_plus.rollouts.fast_actor import FastActor
from sb3_trpo_plus.rollouts.frozen import FrozenPolicy
from sb3_trpo_plus.rollouts.noise import noise_width, noisy_actions, standard_noise
from tests.conftest import ACTION_SPACES, DISTRIBUTIONS, random_env
from tests.rollouts.conftest import OBSERVATION_SPACES, make

WITHOUT_STATE = [name for name in DISTRIBUTIONS if not name.startswith("gsde")]


def actor_of(model: TRPO, n_envs: int) -> FastActor:
    frozen = FrozenPolicy.of(model.policy)
    assert frozen is not None
    return FastActor(frozen, n_envs)


def noise_of(actor: FastActor, n_steps: int, n_envs: int) -> Any:
    return actor.scaled(standard_noise(actor.distribution, n_steps, n_envs).numpy())


@pytest.mark.parametrize("activation", ELEMENTWISE)
@pytest.mark.parametrize("width", [16, 520])
def test_actor_is_the_policys_network(activation: type[nn.Module], width: int) -> None:
    """The outputs, by every activation, in layers large enough for torch and small enough for NumPy."""
    model = make(policy_kwargs={"net_arch": [width, width], "activation_fn": activation})
    actor = actor_of(model, 3)
    noise = noise_of(actor, 2, 3)
    observations = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    with th.no_grad():
        mean = model.policy.get_distribution(th.as_tensor(observations)).distribution.mean.numpy()
    for step in range(2):
        actions = actor.act(observations, noise[step])
        np.testing.assert_allclose(actions - noise[step], mean, rtol=1e-4, atol=1e-5)
        # With the noise, which is what must be finite.
        np.testing.assert_allclose(actor.outputs, actions)


@pytest.mark.parametrize("observation_space", OBSERVATION_SPACES)
def test_observations_of_every_space_are_preprocessed_as_sb3_does(observation_space: str) -> None:
    model = make("box", observation_space)
    actor = actor_of(model, 2)
    space = model.observation_space
    space.seed(0)
    one, other = space.sample(), space.sample()
    if isinstance(space, spaces.Dict):
        # As an environment may give them, in an order of its own.
        observations: Any = {key: np.stack([one[key], other[key]]) for key in reversed(list(one))}
    else:
        observations = np.stack([one, other])
    with th.no_grad():
        mean = model.policy.get_distribution(obs_as_tensor(observations, th.device("cpu"))).distribution.mean.numpy()
    np.testing.assert_allclose(actor.act(observations, np.zeros((2, 3), np.float32)), mean, rtol=1e-4, atol=1e-5)


def test_observations_are_not_changed() -> None:
    """An identity in place of the first activation would write into what is the environment's."""
    for net_arch in ([], [8]):
        model = make(policy_kwargs={"net_arch": net_arch, "activation_fn": nn.ReLU})
        observations = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
        before = observations.copy()
        actor = actor_of(model, 3)
        first = actor.act(observations, np.zeros((3, 3), np.float32)).copy()
        np.testing.assert_array_equal(observations, before)
        np.testing.assert_array_equal(actor.act(observations, np.zeros((3, 3), np.float32)), first)


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_actions_have_the_policys_distribution(name: str) -> None:
    """In one state, 40,000 times: means and (co)variances within five standard errors of the distribution's own."""
    model = make(name)
    with th.no_grad():
        model.policy.action_net.bias.copy_(th.linspace(-1, 1.5, len(model.policy.action_net.bias)))
        if name == "box":
            model.policy.log_std.copy_(th.tensor([-1.0, 0.0, 0.5]))
    actor = actor_of(model, 40)
    n = 40_000
    th.manual_seed(0)
    noise = noise_of(actor, n // 40, 40)
    observation = np.full((40, 4), 0.3, dtype=np.float32)
    actions = np.concatenate([actor.act(observation, noise[step]) for step in range(n // 40)])
    assert model.action_space.contains(actions[0].astype(model.action_space.dtype)) or name == "box"
    with th.no_grad():
        distribution = model.policy.get_distribution(th.as_tensor(observation[:1])).distribution
    if name == "box":
        mean, std = distribution.mean.numpy()[0], distribution.stddev.numpy()[0]
        assert (abs(actions.mean(0) - mean) < 5 * std / n**0.5).all()
        assert (abs(actions.std(0) / std - 1) < 5 / (2 * n) ** 0.5).all()
        assert (abs(np.corrcoef(actions.T) - np.eye(3)) < 5 / n**0.5).all()
    elif name == "multi_binary":
        probability = distribution.probs.numpy()[0]
        assert (abs(actions.mean(0) - probability) < 5 * (probability * (1 - probability) / n) ** 0.5).all()
        assert (abs(np.corrcoef(actions.T) - np.eye(3)) < 5 / n**0.5).all()
    else:
        columns = actions.reshape(n, -1).T
        for column, part in zip(columns, [distribution] if name == "discrete" else distribution, strict=True):
            probability = part.probs.numpy()[0]
            frequency = np.bincount(column, minlength=len(probability)) / n
            assert (abs(frequency - probability) < 5 * (probability * (1 - probability) / n) ** 0.5).all()


def test_improbable_actions_are_not_drawn() -> None:
    """A logit of -1000 has probability 0 in float32: no noise may be so large that it wins."""
    model = make("discrete")
    with th.no_grad():
        model.policy.action_net.bias[0] = -1000.0
    actor = actor_of(model, 100)
    noise = noise_of(actor, 2000, 100)
    assert np.isfinite(noise).all()
    observations = np.zeros((100, 4), dtype=np.float32)
    assert min(actor.act(observations, noise[step]).min() for step in range(2000)) == 1


@pytest.mark.parametrize("name", WITHOUT_STATE)
def test_noise_makes_the_actions_that_torchs_samplers_draw(name: str) -> None:
    """Step by step from the same seed, whichever way the steps' noise is drawn together."""
    model = make(name)
    with th.no_grad():
        distribution = model.policy.get_distribution(th.randn(5, 4))
    inner = distribution.distribution
    logits = th.cat([part.logits for part in inner], dim=1) if isinstance(inner, list) else getattr(inner, "logits", None)
    outputs = (inner.mean if logits is None else logits).numpy()
    th.manual_seed(3)
    expected = [distribution.sample().numpy() for _ in range(4)]
    th.manual_seed(3)
    noise = standard_noise(distribution, 4, 5).numpy()
    assert noise.shape == (4, 5, noise_width(distribution)) == (4, *outputs.shape)
    if name == "box":
        noise *= inner.stddev.numpy()
    for one, of_torch in zip(noise, expected, strict=True):
        np.testing.assert_allclose(noisy_actions(distribution, outputs, one), of_torch, rtol=1e-6, atol=1e-6)
    assert len({array.tobytes() for array in expected}) > 1


@pytest.mark.parametrize("name", ["gsde", "gsde_expln", "gsde_squashed"])
@pytest.mark.parametrize(("n_envs", "n_matrices"), [(1, 1), (3, 3), (2, 3)])
def test_noise_of_gsde_is_that_of_the_policys_matrices(name: str, n_envs: int, n_matrices: int) -> None:
    """As many matrices as environments, or one for all where the numbers differ."""
    model = make(name)
    policy = model.policy
    policy.reset_noise(n_matrices)
    actor = actor_of(model, n_envs)
    observations = np.random.default_rng(0).normal(size=(n_envs, 4)).astype(np.float32)
    for _ in range(2):
        with th.no_grad():
            expected, _, _ = policy(th.as_tensor(observations))
        np.testing.assert_allclose(actor.act(observations, None), expected.numpy(), rtol=1e-4, atol=1e-5)
        policy.reset_noise(n_matrices)
        actor.read_exploration()


def test_gumbel_noise_stays_finite_at_the_ends_of_the_exponential(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exponential number that is rounded to 0 would be an infinite Gumbel one, which wins over any logit."""
    monkeypatch.setattr(th.Tensor, "exponential_", lambda tensor: tensor.zero_())
    noise = standard_noise(make("discrete").policy.action_dist, 2, 3)
    assert noise.isfinite().all()
    assert (noise > 80).all()


def test_policies_in_double_precision_act_in_it() -> None:
    """Observations in float32 are made float64 first, as the policy's own first layer is."""
    model = TRPO("MlpPolicy", random_env(), n_steps=32, batch_size=32, seed=0)
    model.policy.double()
    actor = actor_of(model, 2)
    observations = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    noise = noise_of(actor, 1, 2)[0]
    actions = actor.act(observations, noise)
    assert (noise.dtype, actions.dtype) == (np.float64, np.float64)
    policy = model.policy
    with th.no_grad():
        mean = policy.action_net(policy.mlp_extractor.forward_actor(th.as_tensor(observations).double())).numpy()
    np.testing.assert_allclose(actions - noise, mean, rtol=1e-12)
