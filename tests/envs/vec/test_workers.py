"""``WorkerVecEnv`` beside SB3's ``DummyVecEnv``: all that comes out is the same to the bit, and does not change later."""

import copy
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.envs.vec.making import make_worker_vec
from sb3_trpo_plus.envs.vec.workers import WorkerVecEnv
from tests.conftest import parameters_of
from tests.envs.vec.same import ACTIONS, OBSERVATIONS, Telling, same

N_ENVS = 5


def telling(observation: str = "box", action: str = "box", n_envs: int = N_ENVS) -> list[Any]:
    return [lambda: Monitor(Telling(observation, action))] * n_envs


def sampled(space: spaces.Space[Any], n_steps: int, n_envs: int = N_ENVS) -> list[Any]:
    space = copy.deepcopy(space)
    space.seed(0)
    return [np.stack([space.sample() for _ in range(n_envs)]) for _ in range(n_steps)]


def assert_same_run(one: Any, other: Any, all_actions: list[Any]) -> None:
    """From a reset on; what was returned is compared at the end, when the arrays of later steps are there."""
    seen: list[list[Any]] = [[], []]
    for env, outcomes in zip((one, other), seen, strict=True):
        env.seed(3)
        env.set_options([{"number": 1}, {}, {"number": 2}, {}, {}][: env.num_envs])
        outcomes.append((env.reset(), list(env.reset_infos)))
    for actions in all_actions:
        for env, outcomes in zip((one, other), seen, strict=True):
            outcomes.append((*env.step(actions), list(env.reset_infos)))
    for first, second in zip(*seen, strict=True):
        assert same(first, second)
    dones = np.array([outcome[2] for outcome in seen[0][1:]])
    assert 0 < dones.sum() < dones.size
    infos = [info for outcome in seen[0][1:] for info in outcome[3]]
    assert {info["TimeLimit.truncated"] for info in infos} == {True, False}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_a_run_is_that_of_dummy_vec_env(workers: Callable[..., Any], observation: str, action: str) -> None:
    env_fns = telling(observation, action)
    assert_same_run(DummyVecEnv(env_fns), workers(env_fns), sampled(ACTIONS[action], 40))


@pytest.mark.parametrize("n_workers", [1, 2, 4, 5, 9, None])
def test_chunks_are_contiguous_and_of_one_size_as_far_as_can_be(workers: Callable[..., Any], n_workers: int | None) -> None:
    env = workers(telling(), n_workers)
    assert_same_run(DummyVecEnv(telling()), env, sampled(ACTIONS["box"], 40))
    processes = [env.call_in(index, _process) for index in range(N_ENVS)]
    assert os.getpid() not in processes
    expected = min(N_ENVS, n_workers or len(os.sched_getaffinity(0)))
    sizes = [processes.count(process) for process in dict.fromkeys(processes)]
    assert (
        len(sizes)
        == len([1 for one, after in zip(processes, [*processes[1:], None], strict=True) if one != after])
        == expected
    )
    assert max(sizes) - min(sizes) <= 1


def _process(env: Any) -> int:
    return os.getpid()


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_a_run_is_the_same_with_other_start_methods(workers: Callable[..., Any], start_method: str) -> None:
    """Of functions that only cloudpickle can pickle."""
    env = workers(telling("dict"), 2, start_method)
    assert_same_run(DummyVecEnv(telling("dict")), env, sampled(ACTIONS["box"], 20))


@pytest.mark.parametrize(
    "change",
    [
        lambda actions: actions.astype(np.float64),
        lambda actions: actions.tolist(),
        lambda actions: tuple(actions),
        lambda actions: actions[::-1],
        lambda actions: np.concatenate([actions, actions]),
        lambda actions: actions.astype(">f4"),
        th.as_tensor,
    ],
    ids=["double", "list", "tuple", "strides", "more", "bytes swapped", "tensor"],
)
def test_actions_of_other_forms_reach_the_environments_as_they_are(workers: Callable[..., Any], change: Any) -> None:
    actions = [change(one) for one in sampled(ACTIONS["box"], 30)]
    assert_same_run(DummyVecEnv(telling()), workers(telling()), actions)


class DictOfActions(Telling):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Dict(one=ACTIONS["box"])

    def step(self, action: Any) -> Any:
        return super().step(action["one"])


def test_actions_without_an_array_for_them(workers: Callable[..., Any]) -> None:
    actions = [[{"one": part} for part in one] for one in sampled(ACTIONS["box"], 30)]
    env_fns = [lambda: Monitor(DictOfActions())] * N_ENVS
    assert_same_run(DummyVecEnv(env_fns), workers(env_fns), actions)


class Overwriting(gym.Env[Any, Any]):
    """Writes observations and infos into the same objects, also in a reset, and keeps its actions."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self) -> None:
        self.observation, self.info, self.kept = np.zeros(1, np.float32), {"at": [0.0]}, []

    def reset(self, **kwargs: Any) -> Any:
        self.observation[0] = self.info["at"][0] = -1
        self.kept.clear()
        return self.observation, {}

    def step(self, action: Any) -> Any:
        self.kept.append(action)
        self.observation[0] = self.info["at"][0] = len(self.kept)
        return self.observation, float(np.sum(self.kept)), len(self.kept) == 3, False, self.info


def test_what_environments_write_into_later_is_copied_before(workers: Callable[..., Any]) -> None:
    env = workers([Overwriting] * 2)
    env.reset()
    actions = np.array([[[1.0], [2.0]], [[4.0], [8.0]], [[16.0], [32.0]], [[64.0], [128.0]]], np.float32)
    outcomes = [env.step(one) for one in actions]
    assert [one[0].tolist() for one in outcomes] == [[[1.0]] * 2, [[2.0]] * 2, [[-1.0]] * 2, [[1.0]] * 2]
    assert [one[1].tolist() for one in outcomes] == [[1, 2], [5, 10], [21, 42], [64, 128]]
    assert [one[3][1]["at"] for one in outcomes] == [[1], [2], [3], [1]]
    assert outcomes[2][3][1]["terminal_observation"].tolist() == [3.0]


def test_infos_are_unpickled_when_they_are_read(workers: Callable[..., Any]) -> None:
    env = workers(telling())
    env.reset()
    for actions in sampled(ACTIONS["box"], 20):
        _, _, dones, infos = env.step(actions)
        assert list(infos.told) == np.flatnonzero(dones).tolist()
        assert all({"episode", "terminal_observation"} <= info.keys() for info in infos.told.values())
        first = infos[3]
        first["mine"] = 1
        assert infos[3] is first
        assert infos[-1]["nested"]["words"] == ["a", None]
        assert [*infos][3]["mine"] == 1


def test_the_methods_of_a_vec_env(workers: Callable[..., Any]) -> None:
    one, other = DummyVecEnv(telling()), workers(telling())
    for env in (one, other):
        env.seed(0)
        env.reset()
    for use in (
        lambda env: env.get_attr("n_resets"),
        lambda env: env.get_attr("value", 3),
        lambda env: env.set_attr("value", ["mine"], [1, 2]),
        lambda env: env.get_attr("value"),
        lambda env: env.env_method("add", 3, other=4),
        lambda env: env.env_method("add", 3, indices=[4, 0, 4, -1]),
        lambda env: env.env_method("add", 3, indices=np.array([2, 1])),
        lambda env: env.env_is_wrapped(Monitor),
        lambda env: env.env_is_wrapped(gym.wrappers.TimeLimit, indices=1),
        lambda env: [env.has_attr("value"), env.has_attr("nothing"), env.has_attr("np_random")],
        lambda env: env.get_images(),
        lambda env: env.render(),
        lambda env: [env.render_mode, env.metadata, env.num_envs, env.observation_space, env.action_space],
        lambda env: env.seed(7),
        lambda env: env.reset(),
        lambda env: env.reset_infos,
        lambda env: env.reset(),
        lambda env: env.reset_infos,
    ):
        assert same(use(one), use(other))


USES: dict[str, Callable[[Any, int], Any]] = {
    "seed": lambda env, number: env.seed(number),
    "options": lambda env, number: env.set_options({"number": number}),
    "reset": lambda env, number: env.reset(),
    "infos of the reset": lambda env, number: list(env.reset_infos),
    "set": lambda env, number: env.set_attr("value", number, number % env.num_envs),
    "get": lambda env, number: env.get_attr("value"),
    "call": lambda env, number: env.env_method("add", number, indices=[number % env.num_envs, 0]),
    "step": lambda env, number: env.step(sampled(env.action_space, number + 1, env.num_envs)[number]),
    "step of a list": lambda env, number: env.step(list(sampled(env.action_space, number + 1, env.num_envs)[number])),
}


@settings(max_examples=20, deadline=None)
@given(
    n_envs=st.integers(1, 5),
    n_workers=st.integers(1, 5),
    observation=st.sampled_from(list(OBSERVATIONS)),
    action=st.sampled_from(list(ACTIONS)),
    uses=st.lists(st.tuples(st.sampled_from(list(USES)), st.integers(0, 9)), max_size=25),
)
def test_whatever_is_done_is_what_dummy_vec_env_does(
    n_envs: int, n_workers: int, observation: str, action: str, uses: list[tuple[str, int]]
) -> None:
    both = (
        DummyVecEnv(telling(observation, action, n_envs)),
        WorkerVecEnv(telling(observation, action, n_envs), n_workers, "fork"),
    )
    try:
        outcomes: list[list[Any]] = [[], []]
        for name, number in [("seed", 0), ("reset", 0), *uses, ("step", 0)]:
            for env, outcome in zip(both, outcomes, strict=True):
                outcome.append(USES[name](env, number))
        assert same(*outcomes)
    finally:
        both[1].close()


def test_environments_without_images(workers: Callable[..., Any]) -> None:
    env = workers([lambda: Telling(render_mode=None)] * 2)
    with pytest.warns(UserWarning, match="rgb_array, not None"):
        assert env.get_images() == [None, None]
    with pytest.warns(UserWarning, match="no `render_mode`"):
        assert env.render() is None


def test_what_is_called_in_an_environment(workers: Callable[..., Any]) -> None:
    env = workers(telling(n_envs=3))
    env.reset()
    number = 10
    assert env.call_in(-1, lambda one, factor: (type(one).__name__, factor * one.unwrapped.n_resets + number), 5) == (
        "Monitor",
        15,
    )
    env.call_in(1, setattr, "value", "other")
    assert env.get_attr("value")[:2] != env.get_attr("value")[1:]


def test_a_step_that_was_begun_is_dropped_by_a_reset_alone(workers: Callable[..., Any]) -> None:
    one, other = DummyVecEnv(telling()), workers(telling())
    actions = sampled(ACTIONS["box"], 1)[0]
    for env in (one, other):
        env.seed(1)
        env.reset()
    other.step_async(actions)
    for use in (lambda: other.get_attr("value"), lambda: other.set_attr("value", 1, 0), lambda: other.step_async(actions)):
        with pytest.raises(RuntimeError, match=r"call step_wait\(\) first"):
            use()
    assert same(one.step(actions), other.step_wait())
    other.step_async(actions)
    for env in (one, other):
        env.seed(1)
    assert same(one.reset(), other.reset())
    with pytest.raises(RuntimeError, match=r"call step_async\(\) first"):
        other.step_wait()
    assert same(one.step(actions), other.step(actions))


def test_other_threads_run_while_environments_step(workers: Callable[..., Any], tmp_path: Path) -> None:
    """The step ends once another thread has made a file."""
    env = workers([lambda: Waiting(tmp_path / "file")])
    env.reset()
    thread = threading.Timer(0.2, (tmp_path / "file").touch)
    thread.start()
    assert WorkerVecEnv.leaves_interpreter_free
    assert env.step(np.zeros((1, 2), np.float32))[1] == 5


class Waiting(Telling):
    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def step(self, action: Any) -> Any:
        while not self.file.exists():
            time.sleep(0.01)
        observation, _, *rest = super().step(action)
        return observation, 5.0, *rest


def test_it_is_not_pickled(workers: Callable[..., Any]) -> None:
    env = workers(telling(n_envs=1))
    for use in (pickle.dumps, cloudpickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="has processes"):
            use(env)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"n_workers": 0}, "n_workers must be at least 1"),
        ({"timeout": 0}, "timeout must be"),
        ({"timeout": np.nan}, "timeout"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        WorkerVecEnv(telling(), **kwargs)
    with pytest.raises(ValueError, match="env_fns is empty"):
        WorkerVecEnv([])


def test_monitors_write_their_files(tmp_path: Path) -> None:
    for name, make in (("dummy", make_vec_env), ("workers", make_worker_vec)):
        kwargs = {"start_method": "fork", "n_workers": 2} if make is make_worker_vec else {}
        env = make("CartPole-v1", 3, seed=0, monitor_dir=str(tmp_path / name), **kwargs)
        env.reset()
        for actions in sampled(spaces.Discrete(2), 300, 3):
            env.step(actions)
        env.close()
    for index in range(3):
        rows = [(tmp_path / name / f"{index}.monitor.csv").read_text().splitlines() for name in ("dummy", "workers")]
        assert len(rows[0]) > 4
        assert [row.split(",")[:2] for row in rows[0][1:]] == [row.split(",")[:2] for row in rows[1][1:]]


@pytest.mark.parametrize(
    "wrap", [VecNormalize, lambda env: VecFrameStack(VecNormalize(env, gamma=0.9), 2)], ids=["one", "two"]
)
def test_trpo_learns_the_same(wrap: Any) -> None:
    found = []
    for kwargs in ({}, {"vec_env_cls": WorkerVecEnv, "vec_env_kwargs": {"n_workers": 2, "start_method": "fork"}}):
        env = wrap(make_vec_env("CartPole-v1", 4, **kwargs))
        model = TRPO("MlpPolicy", env, n_steps=128, batch_size=128, n_critic_updates=2, seed=0, device="cpu").learn(2048)
        found.append((parameters_of(model), [part["r"] for part in model.ep_info_buffer], env.unwrapped.reset_infos))
        env.close()
    assert model._n_updates == 4
    (parameters, returns, infos), (others, *rest) = found
    assert [returns, infos] == rest
    assert len(returns) > 10
    assert all(th.equal(value, others[name]) for name, value in parameters.items())
