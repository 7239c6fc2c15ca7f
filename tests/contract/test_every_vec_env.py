"""
SB3's contract of a VecEnv, by one suite for SB3's own and for this package's.

``DummyVecEnv`` and ``SubprocVecEnv`` define the contract, so they have to pass. Where those two differ, this package's classes
do as ``DummyVecEnv`` does: rewards of float32, and infos in a list.
"""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import AlreadyPendingCallError
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from tests.contract.vec_envs import (
    BOTH,
    ENDINGS,
    KINDS,
    TERMINATED,
    TRUNCATED,
    Ending,
    Open,
    actions_of,
    assert_equal,
    counting,
    element,
    kinds,
    one_of,
    parts_of,
    played,
)

N = len(ENDINGS)
LONG = (Ending(1000, True, False),)
SPACES: dict[str, spaces.Space[Any]] = {
    "float32": spaces.Box(-1.0, 100.0, (3,), np.float32),
    "float64": spaces.Box(-1.0, 100.0, (3,), np.float64),
    "scalar": spaces.Box(-1.0, 100.0, (), np.float32),
    "matrix": spaces.Box(-1.0, 100.0, (2, 3), np.float32),
    "image": spaces.Box(0, 255, (8, 6, 3), np.uint8),
    "integers": spaces.Box(0, 100, (2,), np.int64),
    "discrete": spaces.Discrete(11),
    "discrete from 5": spaces.Discrete(11, start=5),
    "multi discrete": spaces.MultiDiscrete([5, 7]),
    "multi binary": spaces.MultiBinary(5),
    "dict": spaces.Dict(
        {
            "place": spaces.Box(-1.0, 100.0, (2,), np.float64),
            "image": spaces.Box(0, 255, (4, 4, 1), np.uint8),
            "at": spaces.Discrete(9),
        }
    ),
    "tuple": spaces.Tuple((spaces.Box(-1.0, 100.0, (2,)), spaces.Discrete(9))),
}
ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1.0, 1.0, (3,)),
    "box of float64": spaces.Box(-1.0, 1.0, (3,), np.float64),
    "discrete": spaces.Discrete(4),
    "multi discrete": spaces.MultiDiscrete([3, 2]),
    "multi binary": spaces.MultiBinary(3),
}


@kinds()
def test_types(kind: str, opened: Open) -> None:
    """Arrays of the space's dtype, a row for each environment; rewards; dones; a dict of info for each environment."""
    env = opened(kind)
    assert isinstance(env, VecEnv)
    assert env.num_envs == N
    observations = env.reset()
    assert isinstance(observations, np.ndarray)
    for actions in actions_of(env, 9):
        assert (observations.dtype, observations.shape) == (np.float32, (N, 2))
        assert [type(info) for info in env.reset_infos] == [dict] * N
        observations, rewards, dones, infos = env.step(actions)
        assert (type(rewards), rewards.shape, rewards.dtype.kind) == (np.ndarray, (N,), "f")
        assert (type(dones), dones.shape, dones.dtype) == (np.ndarray, (N,), np.dtype(bool))
        assert [type(info) for info in infos] == [dict] * N
        if KINDS[kind].ours:
            assert rewards.dtype == np.float32
            assert isinstance(infos, list)


@kinds()
def test_each_step_is_as_computed_by_hand(kind: str, opened: Open) -> None:
    """
    Observations, rewards and dones of episodes that end by termination, truncation, both, and at their first step.

    After a done comes the first observation of the next episode; the last one of the episode is in the infos, with whether it
    was cut off, and with its return and length.
    """
    env = opened(kind)
    first = env.reset()
    actions = actions_of(env, 40)
    rows = [played(endings, [float(action[index]) for action in actions]) for index, endings in enumerate(ENDINGS)]
    assert_equal(first, np.stack([element(env.observation_space, 0)] * N))
    for time, action in enumerate(actions):
        observations, rewards, dones, infos = env.step(action)
        for index in range(N):
            row, info = rows[index][time], infos[index]
            assert_equal(observations[index], element(env.observation_space, row.observed))
            assert (rewards[index], dones[index]) == (row.reward, row.done)
            assert info["TimeLimit.truncated"] == row.cut
            assert info["step"] == (row.last if row.done else row.observed)
            assert ("terminal_observation" in info) == ("episode" in info) == row.done
            if row.done:
                assert_equal(info["terminal_observation"], element(env.observation_space, row.last or 0))
                assert (info["episode"]["r"], info["episode"]["l"]) == row.episode
                assert info["episode"]["t"] >= 0


@kinds()
def test_nothing_returned_earlier_changes(kind: str, opened: Open) -> None:
    """What a step returned is the caller's: later steps and resets leave it as it is."""
    env = opened(kind)
    kept: list[Any] = [env.reset()]
    copies = [copy.deepcopy(kept[0])]
    for time, action in enumerate(actions_of(env, 14)):
        *arrays, infos = env.step(action)
        kept.append((*arrays, *infos))
        copies.append(copy.deepcopy(kept[-1]))
        if time == 9:
            kept.append(env.reset())
            copies.append(copy.deepcopy(kept[-1]))
    for one, as_it_was in zip(kept, copies, strict=True):
        assert_equal(one, as_it_was)


@kinds()
def test_what_is_returned_may_be_changed(kind: str, opened: Open) -> None:
    """And the other way round: what the caller does to it is not what the environments go on with."""
    env, other = opened(kind), opened("dummy")
    for spoilt in (env.reset(), other.reset()):
        spoilt[:] = -1
    for action in actions_of(env, 12):
        found, expected = env.step(action.copy()), other.step(action.copy())
        for mine, theirs in zip(found[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(mine, theirs)
        for array in (*found[:3], *expected[:3]):
            array[:] = 0
        for info in found[3]:
            info.clear()


@kinds("reused arrays")
def test_environment_that_reuses_its_array(kind: str, opened: Open) -> None:
    """
    Simulators write each observation into the same array, the first one of the next episode into the last one's.

    ``DummyVecEnv`` does not copy before the reset, so it hands out the first observation of the next episode as the last one.
    """
    env = opened(kind, counting(reuses=True))
    env.reset()
    lasts = [
        (info["terminal_observation"].copy(), info["step"])
        for action in actions_of(env, 12)
        for info in env.step(action)[3]
        if "terminal_observation" in info
    ]
    assert len(lasts) > N
    for last, step in lasts:
        if KINDS[kind].ours:
            assert_equal(last, element(env.observation_space, step))
        else:
            assert_equal(last, element(env.observation_space, 0))


@pytest.mark.parametrize("space", SPACES)
@kinds()
def test_observation_spaces(kind: str, space: str, opened: Open) -> None:
    """Observations of every space, and the last ones of the episodes, are in the types and numbers of ``DummyVecEnv``."""
    makers = counting(ENDINGS[:3], observation_space=SPACES[space])
    env, other = opened(kind, makers), opened("dummy", makers)
    assert env.observation_space == SPACES[space]
    observations = env.reset()
    assert_equal(observations, other.reset())
    for action in actions_of(env, 10):
        found, expected = env.step(action), other.step(action)
        assert_equal(found[0], expected[0])
        assert all(part.flags.c_contiguous for part in parts_of(found[0]))
        for index in np.flatnonzero(expected[2]):
            assert_equal(found[3][index]["terminal_observation"], expected[3][index]["terminal_observation"])
        assert all(env.observation_space.contains(one_of(found[0], index)) for index in range(env.num_envs))


@pytest.mark.parametrize("space", ACTION_SPACES)
@kinds()
def test_action_spaces(kind: str, space: str, opened: Open) -> None:
    """Actions arrive as ``DummyVecEnv`` hands them on: the same numbers, in the same types."""
    makers = counting([LONG] * 3, action_space=ACTION_SPACES[space])
    env, other = opened(kind, makers), opened("dummy", makers)
    assert env.action_space == ACTION_SPACES[space]
    env.reset()
    other.reset()
    for action in actions_of(other, 6):
        found, expected = env.step(action), other.step(action)
        np.testing.assert_array_equal(found[1], expected[1].astype(found[1].dtype) if KINDS[kind].ours else found[1])
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
        assert [info["kind"] for info in found[3]] == [info["kind"] for info in expected[3]]


@kinds()
def test_seeds(kind: str, opened: Open) -> None:
    """``seed`` alone does nothing; the next reset gives environment i the seed plus i, and the one after that gives none."""
    env = opened(kind)
    env.reset()
    env.step(np.zeros(N, np.float32))
    assert list(env.seed(5)) == [5, 6, 7, 8, 9]
    assert env.get_attr("steps", 1) == [1]
    env.reset()
    assert [info["seed"] for info in env.reset_infos] == [5, 6, 7, 8, 9]
    draws = [info["draw"] for info in env.reset_infos]
    assert draws == [np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).random() for seed in range(5, 10)]
    env.reset()
    assert [info["seed"] for info in env.reset_infos] == [-1] * N
    assert [info["draw"] for info in env.reset_infos] != draws
    env.seed(5)
    env.reset()
    assert [info["draw"] for info in env.reset_infos] == draws


@kinds()
def test_seeds_at_random(kind: str, opened: Open) -> None:
    """``seed()`` takes its seed from NumPy's generator, as SB3 does, and no two environments get the same."""
    env = opened(kind)
    np.random.seed(3)
    found = env.seed()
    np.random.seed(3)
    first = int(np.random.randint(0, np.iinfo(np.uint32).max, dtype=np.uint32))
    assert list(found) == [first + index for index in range(N)]
    env.reset()
    assert [info["seed"] for info in env.reset_infos] == list(found)


@kinds()
def test_reset_infos(kind: str, opened: Open) -> None:
    """After a step in which episodes end, what their resets said; the others' stay."""
    env = opened(kind, counting([LONG, (Ending(2, True, False),)]))
    env.seed(1)
    env.reset()
    assert [info["seed"] for info in env.reset_infos] == [1, 2]
    before = copy.deepcopy(list(env.reset_infos))
    for action in actions_of(env, 2):
        assert_equal(list(env.reset_infos), before)
        env.step(action)
    assert_equal(env.reset_infos[0], before[0])
    assert env.reset_infos[1]["seed"] == -1


@kinds()
def test_options(kind: str, opened: Open) -> None:
    """``set_options``: for all, at the next reset and not at the one after it."""
    env = opened(kind)
    env.set_options({"goal": 3})
    env.reset()
    assert [info["goal"] for info in env.reset_infos] == [3] * N
    env.reset()
    assert [info["goal"] for info in env.reset_infos] == [-1] * N


@kinds("options of each")
def test_options_of_each(kind: str, opened: Open) -> None:
    """``set_options`` with a list."""
    env = opened(kind)
    env.set_options([{"goal": index} for index in range(N)])
    env.reset()
    assert [info["goal"] for info in env.reset_infos] == list(range(N))


@kinds()
def test_reset_within_an_episode(kind: str, opened: Open) -> None:
    """All begin anew, and the episodes' returns and lengths are those since then."""
    env = opened(kind, counting([(TERMINATED,), (TRUNCATED,)]))
    env.reset()
    for _ in range(2):
        env.step(np.ones(2, np.float32))
    assert_equal(env.reset(), np.stack([element(env.observation_space, 0)] * 2))
    ends = []
    for _ in range(4):
        *_, infos = env.step(np.full(2, 2.0, np.float32))
        ends += [(info["episode"]["r"], info["episode"]["l"]) for info in infos if "episode" in info]
    assert ends == [(6.0, 3), (8.0, 4)]


@kinds()
def test_async_and_wait(kind: str, opened: Open) -> None:
    """The two halves of a step."""
    env, other = opened(kind), opened("dummy")
    env.reset()
    other.reset()
    for action in actions_of(env, 6):
        env.step_async(action)
        for mine, theirs in zip(env.step_wait()[:3], other.step(action)[:3], strict=True):
            np.testing.assert_array_equal(mine, theirs)


@kinds("second step_async")
def test_step_async_twice(kind: str, opened: Open) -> None:
    """SB3 forbids it without checking: ``DummyVecEnv`` takes the second actions, others may refuse, none may be lost since."""
    env = opened(kind, counting([LONG] * 2))
    env.reset()
    env.step_async(np.zeros(2, np.float32))
    refused = False
    try:
        env.step_async(np.ones(2, np.float32))
    except (RuntimeError, AlreadyPendingCallError):
        refused = True
    assert not refused or KINDS[kind].ours
    observations, rewards, *_ = env.step_wait()
    assert rewards.tolist() == [0.0 if refused else 1.0] * 2
    assert_equal(observations[0], element(env.observation_space, 1))
    assert env.step(np.full(2, 3.0, np.float32))[1].tolist() == [3.0] * 2


@kinds()
def test_attributes_are_read(kind: str, opened: Open) -> None:
    """``get_attr`` and ``has_attr``: of all environments, of one, of some in any order."""
    env = opened(kind)
    env.reset()
    env.step(np.zeros(N, np.float32))
    assert env.get_attr("steps") == [1, 1, 0, 1, 1]
    assert env.get_attr("steps", [3, 2]) == [1, 0]
    assert env.get_attr("steps", 2) == [0]
    assert env.has_attr("steps")
    assert not env.has_attr("nobody_has_this")


@kinds()
def test_attributes_are_set(kind: str, opened: Open) -> None:
    """``set_attr`` of all."""
    env = opened(kind)
    env.reset()
    env.set_attr("mine", "one")
    assert env.get_attr("mine") == ["one"] * N


@kinds("some attributes")
def test_attributes_of_some_are_set(kind: str, opened: Open) -> None:
    """``set_attr`` of one and of some; SB3 sets them in the outermost wrapper, where ``get_attr`` finds them first."""
    env = opened(kind)
    env.reset()
    env.set_attr("mine", "one", indices=1)
    env.set_attr("mine", "rest", indices=[0, 2, 3, 4])
    assert env.get_attr("mine") == ["rest", "one", "rest", "rest", "rest"]
    env.env_method("set_wrapper_attr", "goal", 1.5, indices=[0, 3])
    assert env.get_attr("goal") == [1.5, 0.0, 0.0, 1.5, 0.0]


@kinds()
def test_methods(kind: str, opened: Open) -> None:
    """``env_method`` with arguments."""
    env = opened(kind, counting([LONG, LONG, (BOTH,)]))
    env.reset()
    for _ in range(2):
        env.step(np.zeros(3, np.float32))
    assert env.env_method("where", 10, plus=2) == [22, 22, 2]


@kinds("some attributes")
def test_methods_of_some(kind: str, opened: Open) -> None:
    """``env_method`` in the order of the indices."""
    env = opened(kind, counting([LONG, LONG, (BOTH,)]))
    env.reset()
    for _ in range(2):
        env.step(np.zeros(3, np.float32))
    assert env.env_method("where", 10, indices=[2, 0]) == [0, 20]
    assert env.env_method("where", 3, indices=0) == [6]


@kinds("exceptions")
def test_an_attribute_that_is_not_there(kind: str, opened: Open) -> None:
    """An error that names it, and the environments can be used on."""
    env = opened(kind)
    with pytest.raises(AttributeError, match="nobody_has_this"):
        env.get_attr("nobody_has_this")
    with pytest.raises(AttributeError, match="nobody_has_this"):
        env.env_method("nobody_has_this")
    env.reset()
    assert env.step(np.ones(N, np.float32))[1].tolist() == [1.0] * N


@kinds()
def test_wrappers_within(kind: str, opened: Open) -> None:
    """``env_is_wrapped``, for all environments and for some."""
    env = opened(kind, [*counting([LONG]), *counting([LONG], monitored=False)])
    # What makes the statistics itself is as good as wrapped.
    claims = getattr(env, "monitor", False)
    assert env.env_is_wrapped(Monitor) == [True, claims]
    assert env.env_is_wrapped(Monitor, indices=1) == [claims]


@kinds()
def test_pictures(kind: str, opened: Open) -> None:
    """``get_images`` of each environment, and ``render`` of all in one picture."""
    env = opened(kind, counting([LONG, (BOTH,)]))
    assert env.render_mode == "rgb_array"
    env.reset()
    for _ in range(3):
        env.step(np.zeros(2, np.float32))
    assert_equal(np.stack(env.get_images()), np.stack([np.full((4, 4, 3), shade, np.uint8) for shade in (30, 10)]))
    picture = env.render()
    assert picture is not None
    assert (picture.shape, sorted(np.unique(picture))) == ((8, 4, 3), [10, 30])


@kinds()
def test_close(kind: str, opened: Open) -> None:
    """Before a reset, with a step under way, and again."""
    for step in (False, True):
        env = opened(kind)
        if step:
            env.reset()
            env.step_async(np.zeros(N, np.float32))
        env.close()
        env.close()


@pytest.mark.filterwarnings("ignore:.*ERROR:UserWarning")
@kinds("exceptions")
def test_exceptions_of_an_environment(kind: str, opened: Open) -> None:
    """What ``step`` raises is what the caller gets."""
    env = opened(kind, counting([LONG] * 3))
    env.reset()
    env.step(np.zeros(3, np.float32))
    with pytest.raises(ZeroDivisionError, match="boom"):
        env.step(np.array([0.0, 7.0, 0.0], np.float32))


@kinds()
def test_infos_can_be_pickled_and_copied(kind: str, opened: Open) -> None:
    """As loggers and ``VecMonitor`` do."""
    env = opened(kind)
    env.reset()
    for action in actions_of(env, 4):
        infos = env.step(action)[3]
        for again in (pickle.loads(pickle.dumps(infos)), copy.deepcopy(infos), list(infos), infos[:]):
            assert_equal(list(again), list(infos))


@kinds()
def test_one_environment(kind: str, opened: Open) -> None:
    """As few as there can be."""
    env = opened(kind, counting([(BOTH,)]))
    assert_equal(env.reset(), element(env.observation_space, 0)[None])
    found = [env.step(np.ones(1, np.float32)) for _ in range(4)]
    assert [dones.tolist() for _, _, dones, _ in found] == [[False], [True], [False], [True]]


@kinds()
def test_rewards_of_other_types(kind: str, opened: Open) -> None:
    """Environments return Python's integers, NumPy's numbers, arrays of none or one dimension's worth of them."""
    values = (3, np.float64(0.5), np.float32(0.25), np.int64(-2))

    def maker(value: Any) -> Callable[[], gym.Env[Any, Any]]:
        class Rewarding(gym.Env[Any, Any]):
            observation_space = spaces.Box(-1.0, 1.0, (1,))
            action_space = spaces.Discrete(2)

            def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
                return np.zeros(1, np.float32), {}

            def step(self, action: Any) -> Any:
                return np.zeros(1, np.float32), value, np.bool_(False), False, {}

        return Rewarding

    env = opened(kind, [maker(value) for value in values])
    env.reset()
    _, rewards, dones, _ = env.step(np.zeros(len(values), np.int64))
    assert rewards.tolist() == [3, 0.5, 0.25, -2]
    assert dones.dtype == bool


REAL = {
    "CartPole-v1": {},
    "HalfCheetah-v4": {"max_episode_steps": 25},
    "Hopper-v4": {},
    "LunarLander-v3": {},
    "FrozenLake-v1": {},
    "Blackjack-v1": {},
}


@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize("env_id", REAL)
@kinds()
def test_real_environments_go_the_same_way(kind: str, env_id: str, opened: Open) -> None:
    """To the bit: observations, rewards, dones, last observations, episodes; with a seed, over several episodes."""
    if env_id.startswith("LunarLander"):
        pytest.importorskip("Box2D")

    def make() -> gym.Env[Any, Any]:
        return Monitor(gym.make(env_id, **REAL[env_id]))

    runs = []
    for env in (opened(kind, [make] * 4), DummyVecEnv([make] * 4)):
        env.seed(11)
        seen: list[Any] = [env.reset()]
        for action in actions_of(env, 150):
            observations, rewards, dones, infos = env.step(action)
            ends = [
                (infos[index]["terminal_observation"], infos[index]["TimeLimit.truncated"], infos[index]["episode"]["l"])
                for index in np.flatnonzero(dones)
            ]
            returns = [infos[index]["episode"]["r"] for index in np.flatnonzero(dones)]
            seen.append((observations, rewards.astype(np.float32), dones, ends, np.array(returns, np.float32)))
        runs.append(seen)
    assert sum(dones.sum() for _, _, dones, _, _ in runs[0][1:]) > 4
    assert_equal(*runs)
