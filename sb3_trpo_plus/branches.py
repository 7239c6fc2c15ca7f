"""Rollouts from saved states, with common random numbers among those of a state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import distributions as td

from sb3_trpo_plus import networks, policy_model
from sb3_trpo_plus.fast_actor import FastActor, exploration_noise, noisy_actions
from sb3_trpo_plus.rollouts import within_bounds
from sb3_trpo_plus.states import VecState, set_vec_state

Array = npt.NDArray[Any]
Observations = Array | dict[str, Array]
# Rows of noise that are drawn at a time.
CHUNK = 32


@dataclass
class Cut:
    """
    A branch that was cut off before its episode's natural end.

    :param place: state and action
    :param discount: of what would have come next
    :param observation: the last one
    """

    place: tuple[int, int]
    discount: float
    observation: Observations


@dataclass
class _Branch:
    state: int
    action: int
    length: int = 0
    discount: float = 1.0


def grow(
    env: VecEnv,
    states: Sequence[VecState],
    actions: Array,
    policy: ActorCriticPolicy,
    gamma: float,
    max_length: int | None,
    on_step: Callable[[Array, list[dict[str, Any]]], bool],
) -> tuple[Array, list[Cut]] | None:
    """
    Try actions in saved states, and go on with the policy until the episode ends or the branch is long enough.

    All environments work at once, each on the next branch to be done. Those of one state share the policy's noise, step by
    step; since random generators are part of a state, they share the environment's too.

    :param env: is left in the state of the last steps
    :param states: to branch from
    :param actions: to be tried there, shape (states, actions, ...), as the policy makes them
    :param policy: is not changed
    :param gamma: discount factor
    :param max_length: limit on a branch's steps; None: none
    :param on_step: called with rewards and infos after each step of all environments; False ends it all
    :return: discounted returns, shape (states, actions), float64, and the branches that were cut off; None if it was ended
    """
    n_states, n_actions = actions.shape[:2]
    returns, cuts = np.zeros((n_states, n_actions)), list[Cut]()
    waiting = iter([_Branch(state, action) for state in range(n_states) for action in range(n_actions)])
    actor = _Actor(policy, env.num_envs)
    noise = [np.empty((0, actor.width), dtype=np.float32) for _ in states]
    running: list[_Branch | None] = [None] * env.num_envs

    def begin_next(index: int) -> None:
        running[index] = branch = next(waiting, None)
        if branch is not None:
            set_vec_state(env, index, states[branch.state])

    for index in range(env.num_envs):
        begin_next(index)
    chosen = np.repeat(actions[0, :1], env.num_envs, axis=0)
    rows = np.zeros((env.num_envs, actor.width), dtype=np.float32)
    while any(running):
        for index, branch in enumerate(running):
            if branch is None:
                continue
            if branch.length == 0:
                chosen[index] = actions[branch.state, branch.action]
            if branch.length >= len(noise[branch.state]):
                noise[branch.state] = np.concatenate([noise[branch.state], actor.draw(CHUNK)])
            rows[index] = noise[branch.state][branch.length]
        observations, rewards, dones, infos = env.step(within_bounds(policy, chosen))
        if not on_step(rewards, infos):
            return None
        for index, branch in enumerate(running):
            if branch is None:
                continue
            returns[branch.state, branch.action] += branch.discount * rewards[index]
            branch.discount *= gamma
            branch.length += 1
            if dones[index] or branch.length == max_length:
                place = (branch.state, branch.action)
                if not dones[index]:
                    cuts.append(Cut(place, branch.discount, observations_at(observations, index)))
                elif infos[index].get("TimeLimit.truncated", False):
                    cuts.append(Cut(place, branch.discount, infos[index]["terminal_observation"]))
                begin_next(index)
        # Of the branches that begin now the action is given, and overwrites this one.
        chosen = actor.act(observations, rows)
    return returns, cuts


def observations_at(observations: Any, index: Any) -> Any:
    """
    A copy of some of a batch of observations.

    :param observations: array or dict of arrays
    :param index: as NumPy takes it
    """
    if isinstance(observations, dict):
        return {key: np.array(value[index]) for key, value in observations.items()}
    return np.array(observations[index])


class _Actor:
    """
    The policy as a function of observations and noise.

    gSDE's actions are drawn from its distribution in each state alone, without its correlation in time; those of families
    that are not known have no common noise.

    :param policy: read now
    :param n_envs: environments, which act together
    """

    def __init__(self, policy: ActorCriticPolicy, n_envs: int) -> None:
        self.policy = policy
        self.has_gsde = isinstance(policy.action_dist, StateDependentNoiseDistribution)
        self.fast = None if self.has_gsde else FastActor.of(policy)
        if self.fast is not None:
            self.fast.begin(1, n_envs)
        self.is_known = type(policy.action_dist) in networks.DISTRIBUTIONS
        #: Numbers of noise a step
        self.width = int(policy.action_net.out_features) if self.is_known else 0  # type: ignore[arg-type]

    def draw(self, n: int) -> Array:
        """Noise of n steps, shape (n, width)."""
        if not self.is_known:
            return np.empty((n, 0), dtype=np.float32)
        if self.has_gsde:
            return th.randn(n, self.width).numpy()
        with th.no_grad():
            noise = exploration_noise(self.policy, n, 1, self.width)[:, 0]
        drawn: Array = noise.cpu().numpy()
        return drawn

    @th.no_grad()
    def act(self, observations: Any, noise: Array) -> Array:
        """
        :param observations: of all environments
        :param noise: shape (environments, width)
        :return: actions as the policy makes them, shape (environments, ...)
        """
        if self.fast is not None:
            self.fast.noise = noise[None]
            return self.fast.act(observations, 0)
        distribution = self.policy.get_distribution(obs_as_tensor(observations, self.policy.device))
        if not self.is_known:
            actions: Array = distribution.get_actions().cpu().numpy()
        elif self.has_gsde:
            inner: Any = distribution.distribution
            actions = inner.loc.cpu().numpy() + inner.scale.cpu().numpy() * noise
            actions = np.tanh(actions) if self.policy.squash_output else actions
        else:
            actions = noisy_actions(distribution, _means_or_logits(distribution), noise)
        return actions.reshape(-1, *(self.policy.action_space.shape or ()))


def _means_or_logits(distribution: Distribution) -> Array:
    components: list[Any] = policy_model.components(distribution)
    outputs = [one.loc if isinstance(one, td.Normal) else one.logits for one in components]
    concatenated: Array = th.cat(outputs, dim=-1).cpu().numpy()
    return concatenated
