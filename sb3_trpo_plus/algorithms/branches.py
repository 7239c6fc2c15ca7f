"""Rollouts from saved states, in which all branches of a state use common random numbers."""

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

from sb3_trpo_plus.envs.vec_states import VecState, set_vec_state
from sb3_trpo_plus.policies.distributions import components
from sb3_trpo_plus.policies.observations import parts_of, whole_of
from sb3_trpo_plus.policies.plain import DISTRIBUTIONS
from sb3_trpo_plus.rollouts.checks import refuse_last, refuse_not_finite
from sb3_trpo_plus.rollouts.collection import within_bounds
from sb3_trpo_plus.rollouts.failures import raise_naming
from sb3_trpo_plus.rollouts.fast_actor import FastActor, Observations
from sb3_trpo_plus.rollouts.frozen import FrozenPolicy
from sb3_trpo_plus.rollouts.noise import noise_width, noisy_actions, standard_noise

Array = npt.NDArray[Any]
# Steps of noise that are drawn at a time for a state.
CHUNK = 32
# Steps after which a branch is taken to run forever, if rollout_length is None.
ENDLESS = 100_000


@dataclass
class Cut:
    """
    A branch that was cut off, by ``max_length`` or a time limit, before its episode terminated.

    :param place: indices of its state and its action
    :param discount: factor of the value of ``observation`` in the branch's return: gamma^length
    :param observation: the one after its last step
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
    Roll out branches: from each saved state, take each of its actions, and follow the policy from there until the episode ends
    or ``max_length`` is reached.

    An environment that has finished a branch begins the next one that is waiting. The k-th steps of all branches of a state
    use the same policy noise, and, since random generators are part of a saved state, the same randomness of the environment.

    :param env: afterwards each environment is wherever its last branch left it
    :param states: to branch from
    :param actions: first actions, before clipping or unscaling, shape (states, actions, ...)
    :param policy: is not changed
    :param gamma: discount factor
    :param max_length: limit on a branch's steps; None: until the episode ends
    :param on_step: called with rewards and infos after each step of the vectorised environment; False stops everything
    :return: discounted returns, shape (states, actions), float64, and the branches that were cut off; None if stopped
    :raises ValueError: a branch without a limit has not ended after 100,000 steps
    :raises ObservationNotFiniteError: an observation is NaN or infinite; no action is taken on it
    """
    n_states, n_actions = actions.shape[:2]
    returns, cuts = np.zeros((n_states, n_actions)), list[Cut]()
    waiting = iter([_Branch(state, action) for state in range(n_states) for action in range(n_actions)])
    actor = _Actor(policy, env.num_envs)
    noise = _CommonNoise(actor)
    running: list[_Branch | None] = [None] * env.num_envs

    def begin_next(index: int) -> None:
        running[index] = branch = next(waiting, None)
        if branch is not None:
            set_vec_state(env, index, states[branch.state])

    for index in range(env.num_envs):
        begin_next(index)
    chosen = np.repeat(actions[0, :1], env.num_envs, axis=0)
    while any(running):
        for index, branch in enumerate(running):
            if branch is not None and branch.length == 0:
                chosen[index] = actions[branch.state, branch.action]
        try:
            observations, rewards, dones, infos = env.step(within_bounds(policy, chosen))
        except Exception as error:
            raise_naming(error, env, "in a branch")
        if not on_step(rewards, infos):
            return None
        refuse_not_finite(observations, "in a branch")
        for index, branch in enumerate(running):
            if branch is None:
                continue
            returns[branch.state, branch.action] += branch.discount * rewards[index]
            branch.discount *= gamma
            branch.length += 1
            if branch.length == ENDLESS and max_length is None:
                raise ValueError(f"A branch has not ended after {ENDLESS:,} steps: set rollout_length")
            is_truncated = dones[index] and infos[index].get("TimeLimit.truncated", False)
            if is_truncated or (branch.length == max_length and not dones[index]):
                last = infos[index]["terminal_observation"] if is_truncated else observations_at(observations, index)
                refuse_last(last, index, policy, "in a branch")
                cuts.append(Cut((branch.state, branch.action), branch.discount, last))
            if dones[index] or branch.length == max_length:
                begin_next(index)
        # For branches that begin now this action is overwritten above: the first one is given.
        chosen = actor.act(observations, noise.rows(running))
    return returns, cuts


def observations_at(observations: Any, index: Any) -> Any:
    """
    Copy some observations of a batch.

    :param observations: array or dict of arrays
    :param index: any NumPy index of the leading dimensions
    """
    return whole_of({key: np.array(part[index]) for key, part in parts_of(observations).items()})


class _CommonNoise:
    """The policy noise that all branches of a state share: one row per step, drawn when first needed."""

    def __init__(self, actor: "_Actor") -> None:
        self.actor = actor
        self.of_states: dict[int, Array] = {}

    def rows(self, branches: Sequence[_Branch | None]) -> Array:
        """Noise for the next step of each branch, shape (environments, width); zeros for an environment without a branch."""
        rows = np.zeros((len(branches), self.actor.width), dtype=np.float32)
        for index, branch in enumerate(branches):
            if branch is None:
                continue
            drawn = self.of_states.get(branch.state, rows[:0])
            if branch.length >= len(drawn):
                drawn = self.of_states[branch.state] = np.concatenate([drawn, self.actor.draw(CHUNK)])
            rows[index] = drawn[branch.length]
        return rows


class _Actor:
    """
    The policy as a function of observations and noise.

    gSDE's actions are sampled independently at each step, without gSDE's correlation in time. Custom distributions sample
    their actions themselves, without common noise.

    :param policy: must not change afterwards
    :param n_envs: number of environments
    """

    def __init__(self, policy: ActorCriticPolicy, n_envs: int) -> None:
        self.policy, self.distribution = policy, policy.action_dist
        self.is_known = type(self.distribution) in DISTRIBUTIONS
        frozen = None if isinstance(self.distribution, StateDependentNoiseDistribution) else FrozenPolicy.of(policy)
        self.fast = None if frozen is None else FastActor(frozen, n_envs)
        #: Random numbers per action; 0 for custom distributions
        self.width = noise_width(self.distribution) if self.is_known else 0

    def draw(self, n: int) -> Array:
        """Noise of n steps, shape (n, width)."""
        if not self.is_known:
            return np.empty((n, 0), dtype=np.float32)
        drawn: Array = standard_noise(self.distribution, n, 1)[:, 0].numpy()
        return drawn

    @th.no_grad()
    def act(self, observations: Any, noise: Array) -> Array:
        """
        :param observations: of all environments
        :param noise: shape (environments, width)
        :return: actions before clipping or unscaling, shape (environments, ...)
        """
        if self.fast is not None:
            return self.fast.act(observations, self.fast.scaled(noise))
        distribution = self.policy.get_distribution(obs_as_tensor(observations, self.policy.device))
        if not self.is_known:
            actions: Array = distribution.get_actions().cpu().numpy()
        elif self.policy.squash_output:
            actions = np.tanh(_noisy_actions(distribution, noise))
        else:
            actions = _noisy_actions(distribution, noise)
        return actions.reshape(-1, *(self.policy.action_space.shape or ()))


def _noisy_actions(distribution: Distribution, noise: Array) -> Array:
    parts: list[Any] = components(distribution)
    if isinstance(parts[0], td.Normal):
        mean, std = (tensor.cpu().numpy() for tensor in (parts[0].loc, parts[0].scale))
        actions: Array = mean + std * noise
        return actions
    logits = th.cat([part.logits for part in parts], dim=-1)
    return noisy_actions(distribution, logits.cpu().numpy(), noise)
