"""Environments of many kinds, and what an agent sees of them, in bits."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_trpo_plus.states import branching, get_vec_state, set_vec_state
from tests.conftest import ACTION_SPACES, RandomEnv

Env = gym.Env[Any, Any]

MUJOCO = ("HalfCheetah-v4", "Ant-v4", "Hopper-v5", "Humanoid-v4", "Reacher-v4", "InvertedPendulum-v4")
CLASSIC = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1")
TOY = ("FrozenLake-v1", "Taxi-v", "CliffWalking-v", "Blackjack-v1")
ATARI = ("ALE/Pong-v5", "ALE/Breakout-v5", "atari wrapper/ALE/Pong-v5", "atari wrapper/ALE/Breakout-v5")
SPACES: dict[str, Callable[[], spaces.Space[Any]]] = {
    "random box": lambda: spaces.Box(-2.0, 2.0, (4,)),
    "random dict": lambda: spaces.Dict(one=spaces.Box(-1, 1, (2,)), other=spaces.Box(0, 255, (8, 8, 2), np.uint8)),
}


class ClassSpaces(RandomEnv):
    observation_space = spaces.Box(-2.0, 2.0, (4,))
    action_space = ACTION_SPACES["box"]

    def __init__(self) -> None:
        pass


FAST = (*CLASSIC, *TOY, *SPACES)


def make(name: str, seed: int | None = 0) -> Env:
    """Reset, in episodes of at most 30 steps."""
    env: Env
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in SPACES:
            env = RandomEnv(SPACES[name](), ACTION_SPACES["box"])
        elif name == "random of class":
            env = ClassSpaces()
        elif name in ATARI:
            pytest.importorskip("ale_py")
            wrapped = name.startswith("atari wrapper/")
            skip = {"frameskip": 1} if wrapped else {}
            env = gym.make(name.removeprefix("atari wrapper/"), max_episode_steps=120 if wrapped else 30, **skip)
            env = AtariWrapper(env) if wrapped else env
        else:
            # The number of the version depends on the installed gymnasium.
            newest = max(known for known in gym.registry if known.startswith(name))
            env = gym.make(newest, max_episode_steps=30)
    env = Monitor(env)
    env.reset(seed=seed)
    return env


def actions_for(env: Any, n_steps: int, seed: int = 0) -> list[Any]:
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    return [space.sample() for _ in range(n_steps)]


def bits(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items()}
    return [bits(part) for part in value] if isinstance(value, tuple) else np.asarray(value).tobytes()


def play(env: Env, actions: list[Any]) -> list[Any]:
    """What an agent sees, in bits; a new episode begins where one ends."""
    seen: list[Any] = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append((bits(observation), bits(reward), terminated, truncated, info.get("episode", {}).get("r")))
        if terminated or truncated:
            seen.append(bits(env.reset()[0]))
    return seen


class Walk(gym.Env[Any, Any]):
    """Can't be copied."""

    observation_space = spaces.Box(-9, 9, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.stream = iter(lambda: 0, 1)
        self.position = [0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.position[0] = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position[0] += 2 * int(action) - 1
        return np.array(self.position, np.float32), 0.0, abs(self.position[0]) > 8, False, {}


class PerEnv(VecEnvWrapper):
    """Adds to rewards how many steps an environment has taken."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.kept = {"taken": np.zeros((self.num_envs, 1))}
        self.unrelated = np.zeros(self.num_envs + 1)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        self.kept["taken"] += 1
        self.unrelated += 1
        return observations, rewards + self.kept["taken"][:, 0], dones, infos


WRAPPERS: dict[str, tuple[str, Callable[[VecEnv], VecEnv]]] = {
    "normalised": ("HalfCheetah-v4", lambda env: VecNormalize(env, gamma=0.9)),
    "stacked": ("random box", lambda env: VecFrameStack(env, 3)),
    "stacked dict of images": ("random dict", lambda env: VecTransposeImage(VecFrameStack(env, 2))),
    "all": ("CartPole-v1", lambda env: VecMonitor(VecNormalize(VecFrameStack(env, 3)))),
    "own": ("CartPole-v1", PerEnv),
}


def make_vec(name: str, n_envs: int = 3) -> Any:
    env_name, wrap = WRAPPERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vec_env = wrap(DummyVecEnv([lambda seed=seed: make(env_name, seed) for seed in range(n_envs)]))  # type: ignore[misc]
    vec_env.seed(0)
    vec_env.reset()
    play_vec(vec_env, vec_actions(vec_env, 11))
    return vec_env


def vec_actions(vec_env: VecEnv, n_steps: int, seed: int = 0) -> list[Any]:
    taken = actions_for(vec_env, n_steps * vec_env.num_envs, seed)
    return [np.stack(taken[i : i + vec_env.num_envs]) for i in range(0, len(taken), vec_env.num_envs)]


def play_vec(vec_env: VecEnv, actions: list[Any]) -> list[list[Any]]:
    """By environment, what an agent sees."""
    seen: list[list[Any]] = [[] for _ in range(vec_env.num_envs)]
    for action in actions:
        observations, rewards, dones, infos = vec_env.step(action)
        for index, steps in enumerate(seen):
            parts = observations.items() if isinstance(observations, dict) else [("", observations)]
            mine = {key: value[index].copy() for key, value in parts}
            episode = infos[index].get("episode", {})
            steps.append(
                (bits(mine), rewards[index], dones[index], bits(infos[index].get("terminal_observation", 0)), episode.get("r"))
            )
    return seen


def rows_in(folder: Path) -> list[int]:
    return [len(path.read_text().splitlines()) - 2 for path in sorted(folder.glob("*monitor.csv"))]


def branch(vec_env: Any, n_steps: int = 60) -> None:
    states = [get_vec_state(vec_env, index) for index in range(vec_env.num_envs)]
    seen = play_vec(vec_env, vec_actions(vec_env, n_steps))
    assert all(any(done for _, _, done, *_ in steps) for steps in seen), "no episode ends"
    for index, state in enumerate(states):
        set_vec_state(vec_env, index, state)


def assert_go_back_and_into_one_another(vec_env: Any) -> None:
    """Environments repeat what they did from their own states, and what the others did from theirs, taken in reverse order."""
    actions = vec_actions(vec_env, 50, seed=1)
    with branching(vec_env):
        states = [get_vec_state(vec_env, index) for index in range(vec_env.num_envs)]
        first = play_vec(vec_env, actions)
        for index, state in enumerate(states):
            set_vec_state(vec_env, index, state)
        assert play_vec(vec_env, actions) == first
        for index, state in enumerate(reversed(states)):
            set_vec_state(vec_env, index, state)
        assert play_vec(vec_env, [action[::-1] for action in actions]) == first[::-1]
