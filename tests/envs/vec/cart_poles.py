"""Steps of many CartPoles, held to the dynamics of the single one."""

from collections.abc import Iterable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv


def steps_as_alone(env: VecEnv, actions: Iterable[Any], limit: int | None, atol: float) -> Iterator[Any]:
    """
    Step the environments, and compare each step with that of Gymnasium's environment from the last observation: the first
    after a reset and the last of an episode among them.

    :param env: of CartPoles, with statistics of episodes
    :param actions: of all environments, for each step
    :param limit: on the steps of an episode, if there is one that they can reach
    :param atol: of the observations
    :return: what each step returned
    """
    alone: Any = gym.make("CartPole-v1").unwrapped
    alone.reset()
    before, lengths = env.reset(), np.zeros(env.num_envs, int)
    for of_all in actions:
        after, rewards, dones, infos = env.step(of_all)
        lengths += 1
        for index in range(env.num_envs):
            alone.state, alone.steps_beyond_terminated = before[index].astype(float), None
            expected, reward, terminated, *_ = alone.step(int(of_all[index]))
            info = infos[index]
            np.testing.assert_allclose(info["terminal_observation"] if dones[index] else after[index], expected, atol=atol)
            assert (rewards[index], dones[index]) == (reward, terminated or lengths[index] == limit)
            assert info["TimeLimit.truncated"] == (dones[index] and not terminated)
            if dones[index]:
                assert np.abs(after[index]).max() <= 0.05
                assert (info["episode"]["r"], info["episode"]["l"]) == (lengths[index], lengths[index])
        lengths[dones], before = 0, after.copy()
        yield after, rewards, dones, infos
