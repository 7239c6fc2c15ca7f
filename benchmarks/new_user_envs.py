"""
A package of environments as a user has one: observations and actions that no entry of ours was made for.

Importing it registers them, as RL Zoo's ``--gym-packages`` expects. Episodes have 50 steps, and a good rule stands beside each
task. MinAtar, where it is installed, is registered along, since it does not do so when it is imported.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Observation = Any
Outcome = tuple[Observation, float, bool, bool, dict[str, Any]]


class Task(gym.Env[Any, Any]):
    """An environment whose subclasses say what is seen, and what an action changes and earns."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.begin()
        return self.seen(), {}

    def step(self, action: Any) -> Outcome:
        reward = self.act(action)
        return self.seen(), float(reward), False, False, {}

    def begin(self) -> None:
        raise NotImplementedError

    def act(self, action: Any) -> float:
        raise NotImplementedError

    def seen(self) -> Observation:
        raise NotImplementedError


class Greenhouse(Task):
    """Heat or cool a greenhouse by the season: a Dict with a Discrete key and two of numbers. Heat (2) below 20 degrees."""

    observation_space = spaces.Dict(
        season=spaces.Discrete(4),
        air=spaces.Box(-40, 80, (2,), np.float32),
        soil=spaces.Box(0, np.inf, (3,), np.float64),
    )
    action_space = spaces.Discrete(3)

    def begin(self) -> None:
        self.season, self.inside, self.soil = int(self.np_random.integers(4)), 20.0, self.np_random.uniform(0, 1000, 3)

    def act(self, action: Any) -> float:
        outside = (0.0, 15.0, 30.0, 10.0)[self.season]
        self.inside += 0.1 * (outside - self.inside) + 3.0 * (int(action) - 1) + self.np_random.normal()
        self.inside = float(np.clip(self.inside, -40, 80))
        self.soil = np.maximum(0, self.soil + self.np_random.normal(0, 10, 3))
        return -abs(self.inside - 20) / 10

    def seen(self) -> Observation:
        outside = (0.0, 15.0, 30.0, 10.0)[self.season]
        return {"season": self.season, "air": np.array([self.inside, outside], np.float32), "soil": self.soil}


class Camera(Task):
    """A square in an image of 84 x 84, to be pushed to the middle by one of four moves."""

    observation_space: spaces.Space[Any] = spaces.Box(0, 255, (84, 84, 1), np.uint8)
    action_space: spaces.Space[Any] = spaces.Discrete(4)
    size = 84

    def begin(self) -> None:
        self.at = self.np_random.uniform(0, 1, 2)

    def act(self, action: Any) -> float:
        self.move(np.array(((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05))[int(action)]))
        return self.reward()

    def move(self, by: Any) -> None:
        self.at = np.clip(self.at + by, 0, 1)

    def reward(self) -> float:
        return -float(np.linalg.norm(self.at - 0.5))

    def image(self) -> Observation:
        picture = np.zeros((self.size, self.size, 1), np.uint8)
        row, column = (self.at * (self.size - 8)).astype(int)
        picture[row : row + 8, column : column + 8] = 255
        return picture

    def seen(self) -> Observation:
        return self.image()


class Rover(Camera):
    """The same with a camera of 64 x 64 beside the wheels' counters, driven by two speeds."""

    observation_space = spaces.Dict(
        camera=spaces.Box(0, 255, (64, 64, 1), np.uint8), wheels=spaces.Box(-np.inf, np.inf, (2,), np.float32)
    )
    action_space = spaces.Box(-1, 1, (2,), np.float32)
    size = 64

    def begin(self) -> None:
        super().begin()
        self.wheels = np.zeros(2, np.float32)

    def act(self, action: Any) -> float:
        self.move(0.05 * action)
        self.wheels = (self.wheels + 100 * action).astype(np.float32)
        return self.reward()

    def seen(self) -> Observation:
        return {"camera": self.image(), "wheels": self.wheels}


class Valves(Task):
    """Three tanks with a valve each, of MultiDiscrete positions: open those (2) that are above half."""

    observation_space = spaces.Box(0, 1, (3,), np.float32)
    action_space = spaces.MultiDiscrete([3, 3, 3])

    def begin(self) -> None:
        self.levels = self.np_random.uniform(0, 1, 3)

    def act(self, action: Any) -> float:
        self.levels = np.clip(self.levels + 0.1 * (1 - np.asarray(action)) + self.np_random.normal(0, 0.05, 3), 0, 1)
        return -float(np.abs(self.levels - 0.5).sum())

    def seen(self) -> Observation:
        return self.levels.astype(np.float32)


class Lights(Task):
    """Eight lamps, seen as MultiBinary, and eight switches, pressed as MultiBinary: press those that are off."""

    observation_space = spaces.MultiBinary(8)
    action_space = spaces.MultiBinary(8)

    def begin(self) -> None:
        self.lit = self.np_random.integers(0, 2, 8).astype(np.int8)

    def act(self, action: Any) -> float:
        fused = self.np_random.uniform(size=8) < 0.1
        self.lit = ((self.lit ^ np.asarray(action, np.int8)) & ~fused).astype(np.int8)
        return float(self.lit.mean())

    def seen(self) -> Observation:
        return self.lit


class Tank(Task):
    """Hold a level at 0 by a flow that has no bounds, far from the scale of 1: subtract a tenth of the level."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def begin(self) -> None:
        self.level = self.np_random.normal(0, 1000, 1)

    def act(self, action: Any) -> float:
        self.level = np.clip(self.level + 10 * np.asarray(action, np.float64) + self.np_random.normal(0, 10, 1), -1e6, 1e6)
        return -float(self.level[0] ** 2) / 1e6

    def seen(self) -> Observation:
        return self.level


class Stream(Task):
    """Follow a level that a generator yields, which can't be copied: no method can put this environment back into a state."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def begin(self) -> None:
        self.levels = self.wander()
        self.level = next(self.levels)

    def wander(self) -> Iterator[float]:
        level = 0.0
        while True:
            yield level
            level = float(np.clip(level + self.np_random.normal(0, 0.1), -1, 1))

    def act(self, action: Any) -> float:
        reward = -abs(self.level - float(action[0]))
        self.level = next(self.levels)
        return reward

    def seen(self) -> Observation:
        return np.array([self.level], np.float32)


for task in (Greenhouse, Camera, Rover, Valves, Lights, Tank, Stream):
    gym.register(f"NewUser/{task.__name__}-v0", f"{__name__}:{task.__name__}", max_episode_steps=50)
if importlib.util.find_spec("minatar") is not None:
    importlib.import_module("minatar.gym").register_envs()
