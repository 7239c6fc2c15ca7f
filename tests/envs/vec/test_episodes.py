"""Statistics of episodes in arrays, beside a ``Monitor`` of each environment."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.monitor import Monitor, load_results

from sb3_trpo_plus.envs.vec.episodes import Episodes

N = 3
REWARDS = st.floats(-1e6, 1e6)
STEPS = st.lists(st.tuples(st.tuples(*[REWARDS] * N), st.tuples(*[st.booleans()] * N)), min_size=1, max_size=20)


class Given(gym.Env[Any, Any]):
    """Its actions are the reward and the end of a step."""

    observation_space = spaces.Discrete(1)
    action_space = spaces.Discrete(1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        return 0, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        reward, ends = action
        return 0, reward, ends, False, {}


def both(steps: Any, episodes: Episodes) -> tuple[list[list[Any]], list[list[Any]]]:
    """By step, return and length of the episodes that ended, as Monitor has them and as Episodes has them."""
    monitors = [Monitor(Given()) for _ in range(N)]
    for monitor in monitors:
        monitor.reset()
    theirs, ours = [], []
    for rewards, ends in steps:
        theirs.append([])
        for monitor, reward, end in zip(monitors, rewards, ends, strict=True):
            info = monitor.step((reward, end))[4]
            if end:
                theirs[-1].append((info["episode"]["r"], info["episode"]["l"]))
                monitor.reset()
        episodes.add(np.array(rewards))
        ended = episodes.end(np.flatnonzero(ends))
        assert all(type(one["r"]) is float and type(one["l"]) is int for one in ended)
        ours.append([(one["r"], one["l"]) for one in ended])
    return theirs, ours


@given(STEPS)
def test_returns_and_lengths_are_those_of_monitor(steps: Any) -> None:
    theirs, ours = both(steps, Episodes(N))
    assert ours == theirs


def test_a_reset_of_all_forgets_the_episodes_that_ran() -> None:
    episodes = Episodes(2)
    episodes.add(np.array([1.0, 2.0]))
    episodes.begin()
    episodes.add(np.array([3.0, 4.0]))
    assert [(one["r"], one["l"]) for one in episodes.end(np.array([0, 1]))] == [(3.0, 1), (4.0, 1)]
    assert episodes.returns.tolist() == episodes.lengths.tolist() == [0, 0]


def test_times_are_seconds_since_the_start_and_never_go_back() -> None:
    episodes, times = Episodes(1), []
    for _ in range(5):
        episodes.add(np.zeros(1))
        times += [one["t"] for one in episodes.end(np.array([0]))]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] < 60
    assert all(round(time, 6) == time for time in times)


def test_the_file_is_as_monitor_writes_it(tmp_path: Path) -> None:
    steps = [((1.0, 0.5, -1.0), (False, True, False)), ((2.0, 1.5, -1.0), (True, False, True))]
    episodes = Episodes(N, str(tmp_path / "0"), "Given-v0")
    theirs, _ = both(steps, episodes)
    episodes.close()
    read = load_results(str(tmp_path))
    assert list(zip(read.r, read.l, strict=True)) == [one for step in theirs for one in step]
    assert list(read.t) == sorted(read.t)
    assert '"env_id": "Given-v0"' in (tmp_path / "0.monitor.csv").read_text().splitlines()[0]
