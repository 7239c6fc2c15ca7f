"""What of an environment and its wrappers is saved, what stays, and what they share."""

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_trpo_plus.states import get_state, set_state
from tests.conftest import ACTION_SPACES, RandomEnv
from tests.envs.trajectories import SPACES, Env, actions_for, bits, make, play


def test_saving_does_not_change_what_is_drawn() -> None:
    def draw(save: bool) -> Any:
        space = SPACES["random dict"]()
        env = RandomEnv(space, ACTION_SPACES["box"])
        for part in space.spaces.values():  # type: ignore[attr-defined]
            part.seed(0)
        if save:
            get_state(env)
        return bits(env.reset()[0])

    assert draw(True) == draw(False)


def test_the_log_of_finished_episodes_is_the_instances_own() -> None:
    env, other = make("CartPole-v1"), make("CartPole-v1", seed=1)
    state = get_state(env)
    play(other, actions_for(other, 60))
    log = other.get_episode_rewards()[:]  # type: ignore[attr-defined]
    assert log
    set_state(other, state)
    assert other.get_episode_rewards() == log  # type: ignore[attr-defined]


class Counter(gym.utils.EzPickle):
    """Pickles as a new one would."""

    count = 0


class Wrapped(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Holds a function that pickle can't find, a queue, and a second reference to something of the environment's own."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.scale = lambda observation: observation * self.unwrapped.tau  # type: ignore[attr-defined]
        gym.utils.RecordConstructorArgs.__init__(self, unused=lambda: 0, times=1)
        self.counter = Counter()
        self.holds = [0, self.unwrapped, self.unwrapped.action_space, self.unwrapped.reset]
        self.queue: deque[Any] = deque([0, 0], maxlen=2)
        self.unwrapped.shared = self.shared = [0]  # type: ignore[attr-defined]

    def step(self, action: Any) -> Any:
        self.queue.append(action)
        self.shared[0] += 1
        self.counter.count += 1
        observation, *rest = self.env.step(self.queue[0])
        return self.scale(observation) + self.unwrapped.shared[0] * self.counter.count, *rest  # type: ignore[attr-defined]


def test_wrappers_come_along_and_stay_connected() -> None:
    def make_wrapped() -> Env:
        env: Env = gym.wrappers.NormalizeReward(gym.wrappers.NormalizeObservation(Wrapped(gym.make("CartPole-v1"))))
        env.reset(seed=0)
        return env

    env, other = make_wrapped(), make_wrapped()
    wrapper = other.env.env  # type: ignore[attr-defined]
    scale = wrapper.scale
    play(env, actions_for(env, 9))
    state = get_state(env)
    actions = actions_for(env, 60, seed=1)
    expected = play(env, actions)
    for target in (env, other):
        set_state(target, state)
        assert play(target, actions) == expected
    assert wrapper.holds[1:] == [wrapper.unwrapped, wrapper.unwrapped.action_space, wrapper.unwrapped.reset]
    assert wrapper.holds[2] is wrapper.unwrapped.action_space
    assert wrapper.scale is scale, "its closure is the other environment"
    assert wrapper.shared is wrapper.unwrapped.shared


def test_attributes_that_have_come_since_go_and_those_for_drawing_stay() -> None:
    env = gym.make("CartPole-v1", render_mode="rgb_array")
    env.reset(seed=0)
    before = get_state(env)
    env.render()
    env.unwrapped.extra = 1  # type: ignore[attr-defined]
    after = get_state(env)
    set_state(env, before)
    assert not hasattr(env.unwrapped, "extra")
    assert env.unwrapped.screen is not None  # type: ignore[attr-defined]
    fresh = gym.make("CartPole-v1", render_mode="rgb_array")
    set_state(fresh, after)
    assert fresh.unwrapped.extra == 1  # type: ignore[attr-defined]
    np.testing.assert_array_equal(fresh.render(), env.render())
