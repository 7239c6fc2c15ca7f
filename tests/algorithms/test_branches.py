"""Branches: the policy's own actions, and the same noise for those of a state."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo_plus import VineTRPO
from sb3_trpo_plus.algorithms.branches import _Actor, grow
from sb3_trpo_plus.policies.distributions import components
from sb3_trpo_plus.states import get_vec_state
from tests.algorithms.members import SMALL
from tests.conftest import DISTRIBUTIONS, RandomEnv, collect, random_env


@pytest.mark.parametrize("name", ["box", "discrete", "multi_discrete", "multi_binary", "gsde", "gsde_squashed"])
@pytest.mark.parametrize("is_plain", [True, False])
def test_same_action_tried_twice_has_the_same_value(is_plain: bool, name: str) -> None:
    """In an environment of random rewards, with a random policy: both draw the same numbers in a state's branches."""

    class Odd(ActorCriticPolicy):
        def get_distribution(self, obs: Any) -> Any:
            return super().get_distribution(obs)

    space, options = DISTRIBUTIONS[name]
    env = make_vec_env(lambda: RandomEnv(spaces.Box(-2.0, 2.0, (4,)), random_env(space).action_space), 3, seed=0)
    model = VineTRPO("MlpPolicy" if is_plain else Odd, env, **SMALL, **options)
    collect(model)
    states = [get_vec_state(model.env, index) for index in range(3)]
    actions = np.stack([np.stack([model.action_space.sample()] * 4) for _ in states])
    grown = grow(model.env, states, actions, model.policy, 0.9, None, lambda rewards, infos: True)
    assert grown is not None
    returns, _ = grown
    assert (returns == returns[:, :1]).all()
    assert len(np.unique(returns)) == 3


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("is_plain", [True, False])
def test_branches_act_as_the_policy_does(is_plain: bool, name: str) -> None:
    space, options = DISTRIBUTIONS[name]
    model = VineTRPO("MlpPolicy", random_env(space), **SMALL, **options)
    if not is_plain:
        hook = model.policy.mlp_extractor.register_forward_hook(lambda *_: None)
        assert hook is not None
    n = 20_000
    actor = _Actor(model.policy, n)
    observation = np.array([[0.5, -1.0, 0.3, 1.5]], dtype=np.float32)
    actions = actor.act(observation.repeat(n, axis=0), actor.draw(n)).reshape(n, -1)
    distribution = model.policy.get_distribution(th.as_tensor(observation))
    parts: list[Any] = components(distribution)
    if space == "box":
        quantiles = th.tensor([0.1, 0.5, 0.9])
        limits = parts[0].icdf(quantiles[:, None]).detach()
        limits = (th.tanh(limits) if "squashed" in name else limits).numpy()
        frequencies = np.stack([(actions < limit).mean(axis=0) for limit in limits], axis=1)
        probabilities = quantiles.numpy()[None]
    elif space == "multi_binary":
        frequencies, probabilities = actions.mean(axis=0), parts[0].probs.detach().numpy()[0]
    else:
        probabilities = np.concatenate([one.probs.detach().numpy()[0] for one in parts])
        counts = [np.bincount(actions[:, k], minlength=one.probs.shape[1]) for k, one in enumerate(parts)]
        frequencies = np.concatenate(counts) / n
    assert (np.abs(frequencies - probabilities) < 4.5 * np.sqrt(probabilities * (1 - probabilities) / n)).all()


def test_state_dependent_deviations_of_ones_own_policy_are_the_branches_too() -> None:
    class Timid(ActorCriticPolicy):
        def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
            mean = self.action_net(latent_pi)
            return self.action_dist.proba_distribution(mean, self.log_std - 3.0)

    model = VineTRPO(Timid, random_env("box"), **SMALL)
    actor = _Actor(model.policy, 5000)
    actions = actor.act(np.zeros((5000, 4), dtype=np.float32), actor.draw(5000))
    assert actions.std() == pytest.approx(np.exp(-3.0), rel=0.05)


def test_branch_without_an_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(RandomEnv):
        def step(self, action: Any) -> Any:
            return *super().step(action)[:2], False, False, {}

    monkeypatch.setattr("sb3_trpo_plus.algorithms.branches.ENDLESS", 100)
    env = Endless(spaces.Box(-2.0, 2.0, (4,)), random_env("discrete").action_space)
    with pytest.raises(ValueError, match="A branch has not ended after 100 steps: set rollout_length"):
        VineTRPO("MlpPolicy", env, **SMALL).learn(10)
