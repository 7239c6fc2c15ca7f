"""The agent acts in [-1, 1], the environment within its own bounds."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from sb3_trpo_plus.wrappers import unit_actions
from tests.conftest import random_env


class Acted(gym.Wrapper):  # type: ignore[type-arg]
    """Notes the actions that reach the environment."""

    def step(self, action: np.ndarray):  # type: ignore[type-arg, no-untyped-def]
        self.action = action
        return self.env.step(self.env.action_space.sample())


def acting_in(space: spaces.Space) -> Acted:  # type: ignore[type-arg]
    env = random_env()
    env.action_space = space
    return Acted(env)


@given(
    low=st.floats(-100, 99),
    width=st.floats(0.01, 100),
    action=st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3),
)
def test_bounds_are_reached_from_the_ends_of_the_unit_range(low: float, width: float, action: list[float]) -> None:
    bounds = np.float32(low), np.float32(low + width)
    inner = acting_in(spaces.Box(*bounds, shape=(3,)))
    env = unit_actions(inner)
    assert env.action_space == spaces.Box(-1, 1, shape=(3,))
    env.reset()
    env.step(np.array(action, dtype=np.float32))
    expected = bounds[0] + (np.array(action) + 1) / 2 * (bounds[1] - bounds[0])
    assert inner.action == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3), spaces.MultiBinary(2), spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (2,)),
        spaces.Box(0, 255, (2,), np.uint8), spaces.Box(np.array([-1, -np.inf]), np.array([1, 5]), dtype=np.float32),
    ],
)  # fmt: skip
def test_other_spaces_stay_as_they_are(space: spaces.Space) -> None:  # type: ignore[type-arg]
    env = acting_in(space)
    assert unit_actions(env) is env
