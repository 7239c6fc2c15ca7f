"""Environments that tell all that they are given, and comparison to the bit."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

BOX = spaces.Box(-2.0, 2.0, (3,))
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": BOX,
    "double": spaces.Box(-2.0, 2.0, (2, 3), np.float64),
    "image": spaces.Box(0, 255, (5, 4, 3), np.uint8),
    "discrete": spaces.Discrete(7, start=-3),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
    "dict": spaces.Dict(b=BOX, a=spaces.Discrete(3), c=spaces.Box(0, 255, (2, 2), np.uint8), d=spaces.MultiBinary(2)),
    "tuple": spaces.Tuple((BOX, spaces.Discrete(3), spaces.MultiDiscrete([2, 5]))),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1.0, 1.0, (2,)),
    "discrete": spaces.Discrete(4, start=1),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
}


class Telling(gym.Env[Any, Any]):
    """Its infos hold what it was given: every kind of end comes at random, and infos and observations are used again."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 17}  # noqa: RUF012

    def __init__(self, observation: str = "box", action: str = "box", render_mode: str | None = "rgb_array") -> None:
        self.observation_space, self.action_space = OBSERVATIONS[observation], ACTIONS[action]
        self.render_mode = render_mode
        self.n_resets = 0
        self.value: Any = "a value"

    def _observe(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_resets += 1
        self.n_steps = 0
        return self._observe(), {"seed": seed, "options": options, "reset": self.n_resets}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.n_steps += 1
        kept = np.asarray(action).copy()
        info = {"action": kept, "type": type(action).__name__, "nested": {"step": self.n_steps, "words": ["a", None]}}
        if self.n_steps % 3 == 0:
            info["is_success"] = self.np_random.random() < 0.5
        terminated, truncated = self.np_random.random(2) < 0.15
        # Also types that are no bool and no float.
        reward = np.float64(self.np_random.normal()) + np.abs(kept).sum()
        return self._observe(), reward, terminated, bool(truncated), info

    def render(self) -> Any:
        return np.full((2, 3, 3), self.n_resets, np.uint8)

    def fail(self, error: Exception) -> None:
        raise error

    def add(self, one: int, *, other: int = 0) -> int:
        return one + other + self.n_resets


def same(one: Any, other: Any) -> bool:
    """To the bit, in type, and NaN equals NaN; but for the times of SB3's ``Monitor``."""
    if isinstance(one, list) and isinstance(other, list):
        # Of any class, as are dicts: DummyVecEnv's observations are an OrderedDict.
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        times = {"t"} if one.keys() >= {"r", "l", "t"} else set()
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one.keys() - times)
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        one, other = np.asarray(one), np.asarray(other)
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return bool(one == other)
