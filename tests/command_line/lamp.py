"""An environment whose pictures show what the agent did; a module of a user, which registers it when it is imported."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Lamp(gym.Env[Any, Any]):
    """
    A lamp that the action switches on or off; grey before the first action. Rewarded if it is on where the first observation
    is large. Observations are far from what a network can use as they are.
    """

    # MoviePy adds up 1/fps to find a frame, so rounding shows some twice unless that is a power of two.
    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, size: int = 160) -> None:
        self.render_mode, self.size = render_mode, size
        self.observation_space = spaces.Box(0.0, 200.0, (2,))
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.brightness = 0, 128
        self.seen = self.np_random.uniform(100, 110, 2).astype(np.float32)
        return self.seen, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(action == int(self.seen[0] > 105))
        self.steps, self.brightness = self.steps + 1, 255 * int(action)
        self.seen = self.np_random.uniform(100, 110, 2).astype(np.float32)
        return self.seen, reward, False, self.steps >= 10, {}

    def render(self) -> Any:
        return np.full((self.size, self.size, 3), self.brightness, np.uint8)


if "Lamp-v0" not in gym.registry:
    gym.register("Lamp-v0", Lamp)
