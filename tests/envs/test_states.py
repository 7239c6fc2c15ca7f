"""Environments put back into a state: the same actions give the same trajectory to the bit, and records show no trace."""

import copy
import pickle
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_trpo_plus.states import (
    Restorable,
    branching,
    check_restorable,
    get_state,
    get_vec_state,
    set_state,
    set_vec_state,
)
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


@pytest.mark.parametrize("name", [*MUJOCO, *ATARI, *FAST])
def test_same_actions_after_restoring_give_the_same_trajectory(name: str) -> None:
    env, other = make(name), make(name, seed=1)
    play(env, actions_for(env, 12, seed=1))
    state = get_state(env)
    actions = actions_for(env, 40, seed=2)
    expected = play(env, actions)
    assert len(expected) > 40, "an episode ends, and the next one begins as it did"
    assert play(env, actions) != expected, "else nothing would be seen here"
    env.reset(seed=5)
    play(env, actions_for(env, 7, seed=3))
    for _ in range(2):
        set_state(env, state)
        assert play(env, actions) == expected
    play(other, actions_for(other, 3, seed=4))
    set_state(other, pickle.loads(pickle.dumps(state)))
    assert play(other, actions) == expected
    set_state(env, state)
    play(other, actions)
    assert play(env, actions) == expected, "the two share nothing"


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from([*FAST, "random of class"]), before=st.integers(0, 40), detour=st.integers(0, 40), data=st.data())
def test_restored_from_anywhere_at_any_time(name: str, before: int, detour: int, data: st.DataObject) -> None:
    env = make(name, seed=data.draw(st.sampled_from([None, 0, 1])))
    play(env, actions_for(env, before, seed=data.draw(st.integers(0, 9))))
    state = get_state(env)
    actions = actions_for(env, 35, seed=data.draw(st.integers(0, 9)))
    expected = play(env, actions)
    play(env, actions_for(env, detour))
    set_state(env, state)
    assert play(env, actions) == expected


@pytest.mark.parametrize(
    ("name", "kept"),
    [("ALE/Pong-v5", {"ale"}), ("HalfCheetah-v4", {"data", "model", "mujoco_renderer"}), ("Taxi-v", {"P"})],
)
def test_engines_tables_and_spaces_stay_the_same_objects(name: str, kept: set[str]) -> None:
    env = make(name)
    before = {key: getattr(env.unwrapped, key) for key in {"spec", "observation_space", "action_space", *kept}}
    set_state(env, get_state(env))
    assert all(getattr(env.unwrapped, key) is value for key, value in before.items())


def test_a_wrapper_that_reads_the_engine_reads_the_environments_own() -> None:
    env = make("InvertedPendulum-v4")
    env.data = env.unwrapped.data  # type: ignore[attr-defined]
    state = get_state(env)
    play(env, actions_for(env, 3))
    set_state(env, state)
    assert env.data is env.unwrapped.data  # type: ignore[attr-defined]
    assert env.unwrapped.data.time == 0  # type: ignore[attr-defined]


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


def test_sticky_actions_are_drawn_again_as_they_were() -> None:
    env = make("ALE/Pong-v5")
    state = get_state(env)
    actions = actions_for(env, 25)
    set_state(env, state)
    expected = play(env, actions)
    without = env.unwrapped.clone_state(include_rng=False)  # type: ignore[attr-defined]
    set_state(env, state)
    assert play(env, actions) == expected
    set_state(env, state)
    env.unwrapped.ale.restoreState(without)  # type: ignore[attr-defined]
    assert play(env, actions) != expected


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


class Own(Walk):
    """Restores itself, with what get_state() returns still in use."""

    def get_state(self) -> Any:
        return self.position

    def set_state(self, state: Any) -> None:
        self.position = state


def test_an_environment_with_methods_of_its_own_is_asked() -> None:
    env = gym.wrappers.TimeLimit(Own(), 30)
    env.reset()
    play(env, [1, 1, 0])
    state = get_state(env)
    expected = play(env, [1] * 9)
    for _ in range(2):
        set_state(env, state)
        assert play(env, [1] * 9) == expected
    set_state(env, state)
    assert env._elapsed_steps == 3


def test_a_wrapper_with_methods_of_its_own_answers_for_all_beneath() -> None:
    class Answers(gym.Wrapper[Any, Any, Any, Any]):
        def get_state(self) -> Any:
            return [self.unwrapped.position[0]]  # type: ignore[attr-defined]

        def set_state(self, state: Any) -> None:
            self.unwrapped.position = state  # type: ignore[attr-defined]

    env = Monitor(Answers(gym.wrappers.TimeLimit(Own(), 30)))
    env.reset()
    state = get_state(env)
    play(env, [1, 1])
    set_state(env, state)
    assert (env.unwrapped.position, env.rewards, env.env.env._elapsed_steps) == ([0], [], 2)


def test_set_state_of_positions_and_velocities_is_not_the_protocol() -> None:
    class Positions(type(gym.make("InvertedPendulum-v4").unwrapped)):  # type: ignore[misc]
        def get_state(self) -> Any:
            raise AssertionError

    env: Env = Positions()
    env.reset(seed=0)
    state = get_state(env)
    actions = actions_for(env, 5)
    expected = play(env, actions)
    set_state(env, state)
    assert play(env, actions) == expected


def test_a_state_of_something_else_is_refused() -> None:
    state = get_state(make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"CartPoleEnv can't be restored in Pendulum-v1"):
        set_state(make("Pendulum-v1"), state)


@pytest.mark.parametrize("name", ["LunarLander-v3", "BipedalWalker-v3"])
def test_box2d_is_named_in_the_error(name: str) -> None:
    pytest.importorskip("Box2D")
    env = gym.make(name)
    env.reset(seed=0)
    with pytest.raises(TypeError, match=rf"{name} can't be saved: world .* get_state\(\) and set_state\(state\)"):
        get_state(env)
    vec_env = make_vec_env(name, 1, seed=0)
    vec_env.reset()
    with pytest.raises(TypeError, match=name):
        check_restorable(vec_env)


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


@pytest.mark.parametrize("name", WRAPPERS)
def test_one_environment_of_a_vec_env_goes_back_and_the_others_go_on(name: str) -> None:
    vec_env = make_vec(name)
    if isinstance(vec_env, (VecNormalize, VecMonitor)):
        vec_env.training = False
        vec_env.venv.training = False
    state = pickle.loads(pickle.dumps(get_vec_state(vec_env, 1)))
    actions = vec_actions(vec_env, 40, seed=1)
    first = play_vec(vec_env, actions)
    assert any(done for _, _, done, *_ in first[1])
    set_vec_state(vec_env, 1, state)
    others = [pickle.dumps(get_vec_state(vec_env, index).rows) for index in (0, 2)]
    set_vec_state(vec_env, 1, state)
    assert [pickle.dumps(get_vec_state(vec_env, index).rows) for index in (0, 2)] == others
    second = play_vec(vec_env, actions)
    assert second[1] == first[1]
    assert second[0] != first[0]
    assert second[2] != first[2]
    set_vec_state(vec_env, 2, state)
    swapped = [action[[0, 2, 1]] for action in actions]
    assert play_vec(vec_env, swapped)[2] == first[1]


def test_returns_come_back_and_statistics_do_not() -> None:
    vec_env = make_vec("normalised")
    state, before = get_vec_state(vec_env, 1), vec_env.returns.copy()
    play_vec(vec_env, vec_actions(vec_env, 5))
    later, mean = vec_env.returns.copy(), vec_env.obs_rms.mean.copy()
    assert (before != later).all()
    set_vec_state(vec_env, 1, state)
    np.testing.assert_array_equal(vec_env.returns, [later[0], before[1], later[2]])
    np.testing.assert_array_equal(vec_env.obs_rms.mean, mean)


def test_arrays_of_another_length_and_observations_handed_out_stay() -> None:
    vec_env = make_vec("own")
    state = get_vec_state(vec_env, 0)
    play_vec(vec_env, vec_actions(vec_env, 5))
    set_vec_state(vec_env, 0, state)
    assert vec_env.unrelated.tolist() == [16] * 4
    assert vec_env.kept["taken"][:, 0].tolist() == [11, 16, 16]

    stacked = make_vec("stacked")
    state = get_vec_state(stacked, 0)
    observations = stacked.step(vec_actions(stacked, 1)[0])[0]
    kept = observations.copy()
    set_vec_state(stacked, 0, state)
    np.testing.assert_array_equal(observations, kept)


def test_a_state_with_other_vec_env_wrappers_is_refused() -> None:
    vec_env = make_vec("own")
    state = get_vec_state(vec_env, 0)
    with pytest.raises(ValueError, match="PerEnv"):
        set_vec_state(vec_env.venv, 0, state)


def rows_in(folder: Path) -> list[int]:
    return [len(path.read_text().splitlines()) - 2 for path in sorted(folder.glob("*monitor.csv"))]


def branch(vec_env: Any, n_steps: int = 60) -> None:
    states = [get_vec_state(vec_env, index) for index in range(vec_env.num_envs)]
    seen = play_vec(vec_env, vec_actions(vec_env, n_steps))
    assert all(any(done for _, _, done, *_ in steps) for steps in seen), "no episode ends"
    for index, state in enumerate(states):
        set_vec_state(vec_env, index, state)


def test_branches_leave_nothing_in_records(tmp_path: Path) -> None:
    inner = make_vec_env("CartPole-v1", 2, seed=0, monitor_dir=str(tmp_path))
    with pytest.warns(UserWarning, match="already wrapped"):
        vec_env = VecMonitor(VecNormalize(inner), str(tmp_path / "all"))
    vec_env.reset()
    play_vec(vec_env, vec_actions(vec_env, 50))
    normalize, monitors = vec_env.venv, inner.envs

    def records() -> Any:
        logs = [
            (monitor.get_episode_rewards()[:], monitor.get_episode_lengths()[:], len(monitor.get_episode_times()))
            for monitor in monitors
        ]
        statistics = [normalize.obs_rms.mean.tolist(), normalize.obs_rms.count, normalize.ret_rms.var, normalize.ret_rms.count]
        return rows_in(tmp_path), logs, statistics, vec_env.episode_count, inner.reset_infos[:], normalize.returns.tolist()

    inner.reset_infos = [{"number": 0}, {"number": 1}]
    before = records()
    assert min(before[0]) > 0
    with branching(vec_env):
        branch(vec_env)
        with branching(vec_env):
            branch(vec_env)
        branch(vec_env)
    assert records() == before
    with pytest.raises(AssertionError, match="no episode ends"), branching(vec_env):
        branch(vec_env, 3)
    assert records()[:4] == before[:4]
    play_vec(vec_env, vec_actions(vec_env, 50))
    after = records()
    assert (np.array(after[0]) > before[0]).all()
    assert normalize.training
    assert after[2] != before[2]
    assert len(monitors[0].get_episode_times()) == len(monitors[0].get_episode_rewards()) > len(before[1][0][0])


def test_a_state_saved_within_a_branch_and_restored_outside_keeps_the_file_writing(tmp_path: Path) -> None:
    vec_env = make_vec_env("CartPole-v1", 1, seed=0, monitor_dir=str(tmp_path))
    vec_env.reset()
    outside = get_vec_state(vec_env, 0)
    with branching(vec_env):
        inside = get_vec_state(vec_env, 0)
        set_vec_state(vec_env, 0, outside)
        branch(vec_env)
    for state in (inside, outside):
        set_vec_state(vec_env, 0, state)
        before = rows_in(tmp_path)
        play_vec(vec_env, vec_actions(vec_env, 60))
        assert rows_in(tmp_path) > before


@pytest.fixture
def in_subprocesses() -> Iterator[Callable[..., VecEnv]]:
    """Made, reset, and closed at the end, whatever happens."""
    made = []

    def make_reset(name: str, n_envs: int = 1, **kwargs: Any) -> VecEnv:
        fork = {"start_method": "fork"}
        made.append(make_vec_env(name, n_envs, seed=0, vec_env_cls=SubprocVecEnv, vec_env_kwargs=fork, **kwargs))
        made[-1].reset()
        return made[-1]

    yield make_reset
    for vec_env in made:
        vec_env.close()


def test_environments_in_other_processes(in_subprocesses: Callable[..., VecEnv], tmp_path: Path) -> None:
    bare = in_subprocesses("CartPole-v1", 2, wrapper_class=Restorable, monitor_dir=str(tmp_path))
    vec_env = VecFrameStack(VecNormalize(bare), 2)
    vec_env.reset()
    play_vec(vec_env, vec_actions(vec_env, 10))
    check_restorable(vec_env, 60)
    before = rows_in(tmp_path)
    actions = vec_actions(vec_env, 50, seed=1)
    with branching(vec_env):
        states = [get_vec_state(vec_env, index) for index in range(2)]
        first = play_vec(vec_env, actions)
        for index, state in enumerate(states):
            set_vec_state(vec_env, index, state)
        assert play_vec(vec_env, actions) == first
        # Each in the other's process.
        for index, state in enumerate(states):
            set_vec_state(vec_env, 1 - index, state)
        assert play_vec(vec_env, [action[::-1] for action in actions]) == first[::-1]
    assert rows_in(tmp_path) == before
    play_vec(vec_env, vec_actions(vec_env, 60))
    assert (np.array(rows_in(tmp_path)) > before).all()


def test_the_methods_of_restorable(in_subprocesses: Callable[..., VecEnv]) -> None:
    vec_env = in_subprocesses("CartPole-v1", wrapper_class=Restorable)
    (state,) = vec_env.env_method("get_state", indices=0)
    actions = vec_actions(vec_env, 12)
    expected = play_vec(vec_env, actions)[0]
    vec_env.env_method("set_state", state, indices=0)
    assert play_vec(vec_env, actions)[0] == expected
    alone = Monitor(gym.make("CartPole-v1", render_mode="rgb_array"))
    set_state(alone, state)
    observation = alone.step(actions[0][0])[0]
    assert {"": bits(observation)} == expected[0][0]


def test_a_mujoco_state_crosses_processes(in_subprocesses: Callable[..., VecEnv]) -> None:
    vec_env = in_subprocesses("InvertedPendulum-v4", 2, wrapper_class=Restorable)
    actions = vec_actions(vec_env, 30)
    with branching(vec_env):
        state = get_vec_state(vec_env, 0)
        expected = play_vec(vec_env, actions)[0]
        set_vec_state(vec_env, 1, state)
        assert play_vec(vec_env, [action[::-1] for action in actions])[1] == expected


@pytest.mark.parametrize("wrap", [None, lambda env: Monitor(Restorable(env))])
def test_restorable_has_to_be_outermost_in_other_processes(wrap: Any, in_subprocesses: Callable[..., VecEnv]) -> None:
    vec_env = in_subprocesses("CartPole-v1", wrapper_class=wrap)
    for use in (lambda: get_vec_state(vec_env, 0), lambda: check_restorable(vec_env), lambda: branching(vec_env).__enter__()):
        with pytest.raises(TypeError, match="wrapper_class=Restorable"):
            use()
    vec_env.step(vec_actions(vec_env, 1)[0])


def test_an_error_in_another_process_does_not_end_it(in_subprocesses: Callable[..., VecEnv]) -> None:
    pytest.importorskip("Box2D")
    vec_env = in_subprocesses("LunarLander-v3", wrapper_class=Restorable)
    with pytest.raises(TypeError, match=r"LunarLander-v3 can't be saved: world"):
        get_vec_state(vec_env, 0)
    (error,) = vec_env.env_method("attempt", divide_by_zero)
    assert type(error) is RuntimeError
    assert str(error) == "ZeroDivisionError: no"
    vec_env.step(vec_actions(vec_env, 1)[0])


def divide_by_zero(env: Env) -> None:
    raise ZeroDivisionError("no")


class Hidden(RandomEnv):
    """Counts its steps outside of itself, as an environment in a server does."""

    elsewhere: ClassVar[dict[int, int]] = {}

    def __init__(self, number: int, where: str) -> None:
        super().__init__(spaces.Box(-2.0, 2.0, (4,)), spaces.Discrete(2))
        self.number, self.where = number, where
        self.elsewhere[number] = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, truncated, info = super().step(action)
        count = self.elsewhere[self.number] = self.elsewhere[self.number] + 1
        if self.where == "observation" or (self.where == "last observation" and truncated):
            observation[0] = count
        return observation, reward + count * (self.where == "reward"), self.where == "end" and count % 7 == 0, truncated, info


@pytest.mark.parametrize(("where", "n_steps"), [("observation", 10), ("last observation", 20), ("reward", 10), ("end", 10)])
@pytest.mark.parametrize("number", [0, 1])
def test_hidden_state_is_found_out(where: str, n_steps: int, number: int) -> None:
    vec_env = DummyVecEnv([lambda i=i: Hidden(i, where if i == number else "nowhere") for i in range(2)])  # type: ignore[misc]
    vec_env.seed(0)
    vec_env.reset()
    with pytest.raises(ValueError, match=r"Hidden does not come back exactly .*get_state\(\) and set_state\(state\)"):
        check_restorable(vec_env, n_steps)
    assert n_steps < Hidden.elsewhere[number] <= 2 * n_steps
    assert [env.steps for env in vec_env.envs] == [0, 0]
    check_restorable(DummyVecEnv([lambda: vec_env.envs[1 - number]]))


def test_a_wrapper_that_forgets_is_found_out() -> None:
    class Forgets(PerEnv):
        def step_wait(self) -> Any:
            observations, rewards, dones, infos = super().step_wait()
            return observations, rewards + self.unrelated[0], dones, infos

    vec_env = Forgets(make_vec("own").venv)
    with pytest.raises(ValueError, match="CartPole-v1 does not come back exactly"):
        check_restorable(vec_env)


def test_an_uncopyable_attribute_is_named() -> None:
    with pytest.raises(TypeError, match="Walk can't be saved: stream of Walk, a callable_iterator, can't be copied"):
        get_state(Walk())


@pytest.mark.parametrize("name", WRAPPERS)
def test_environments_that_were_checked_go_on_as_if_they_were_not(name: str) -> None:
    checked, unchecked = make_vec(name), make_vec(name)
    check_restorable(checked, 40)
    actions = vec_actions(checked, 40, seed=1)
    seen = play_vec(checked, actions)
    if name == "own":
        checked.unrelated[:] = unchecked.unrelated[:]
    assert seen == play_vec(unchecked, actions)


def test_nothing_is_drawn_from_the_users_generators() -> None:
    vec_env = make_vec("normalised")
    vec_env.action_space.seed(0)
    np.random.seed(0)
    check_restorable(vec_env)
    drawn = vec_env.action_space.sample(), np.random.rand()
    vec_env.action_space.seed(0)
    np.random.seed(0)
    np.testing.assert_array_equal(drawn[0], vec_env.action_space.sample())
    assert drawn[1] == np.random.rand()


@pytest.mark.parametrize("seed", range(6))
def test_what_a_sticky_action_repeats_comes_back(seed: int) -> None:
    """The first action after restoring may be replaced by the one before, which was another one when the state was saved."""
    pytest.importorskip("ale_py")
    vec_env = make_atari_env("ALE/Pong-v5", seed=seed)
    vec_env.reset()
    check_restorable(vec_env)
