"""An environment that fails is named, by exceptions of SB3's classes; the model can be saved, and trained on with another."""

import os
import re
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO
from sb3_trpo_plus.envs.vec import WorkerVecEnv
from tests.conftest import RandomEnv, parameters_of
from tests.rollouts.conftest import force_general_path

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")


class MineError(Exception):
    pass


class Failing(RandomEnv):
    """Fails in a way in its third step."""

    def __init__(self, way: str | None = None, space: str = "box") -> None:
        vector = spaces.Box(-2.0, 2.0, (4,))
        super().__init__(
            vector if space == "box" else spaces.Dict({"a": vector, "b": vector}), spaces.Box(-1.0, 1.0, (2,), np.float32)
        )
        self.way, self.total = way, 0

    def reset(self, **kwargs: Any) -> Any:
        if self.way == "reset":
            raise MineError("in reset")
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        self.total += 1
        if self.total < 3 or self.way is None:
            return observation, *rest
        if self.way == "raises":
            raise MineError("in step")
        if self.way == "exits":
            os._exit(7)
        if self.way == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.way == "key":
            return {"a": observation["a"]}, *rest
        return {"shape": np.zeros(5, np.float32), "dtype": np.array(["a"] * 4)}[self.way], *rest


def envs(kind: Any, ways: list[str | None], space: str = "box") -> Any:
    return VecNormalize(kind([partial(Failing, way, space) for way in ways]), norm_obs=False)


def make(env: Any, member: Any = TRPO) -> Any:
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    kwargs = {"n_rollout_states": 4, "rollout_length": 2} if member is VineTRPO else {}
    return member(policy, env, n_steps=8, batch_size=16, seed=0, device="cpu", **kwargs)


def assert_as_it_was_and_goes_on(model: Any, before: dict[str, th.Tensor], folder: Path, space: str = "box") -> None:
    assert all(th.equal(part, before[name]) for name, part in parameters_of(model).items())
    model.save(folder / "model.zip")
    env = envs(DummyVecEnv, [None] * model.n_envs, space)
    for one in (model, type(model).load(folder / "model.zip", env=env)):
        one.set_env(env)
        one.learn(16, reset_num_timesteps=False)
        assert one._n_updates == 1


@pytest.mark.parametrize("member", [TRPO, NPG, PPOPenalty, VineTRPO])
@pytest.mark.parametrize("index", [0, 2])
def test_exception_of_an_environment_comes_out_with_a_note(index: int, member: Any, tmp_path: Path) -> None:
    model = make(envs(DummyVecEnv, ["raises" if i == index else None for i in range(3)]), member)
    before = parameters_of(model)
    with pytest.raises(MineError) as error:
        model.learn(24)
    assert str(error.value) == "in step"
    when = "a test of whether its state can be restored" if member is VineTRPO else "step 3 of the rollout"
    assert error.value.__notes__ == [f"From environment {index} in {when}"]
    assert_as_it_was_and_goes_on(model, before, tmp_path)


def in_workers(env_fns: Any) -> WorkerVecEnv:
    return WorkerVecEnv(env_fns, 2, "fork")


@pytest.mark.parametrize("way", ["raises", "shape", "reset"])
@pytest.mark.parametrize("member", [TRPO, VineTRPO])
def test_exception_of_an_environment_in_a_worker_has_two_notes(way: str, member: Any, tmp_path: Path) -> None:
    """Where it comes from, and when; the environments need not be made again."""
    env = envs(in_workers, [None, None, way])
    model = make(env, member)
    before = parameters_of(model)
    with pytest.raises((MineError, ValueError)) as error:
        model.learn(24)
    where, when = error.value.__notes__
    assert re.fullmatch(r"From environment 2 \(worker 1, process \d+\)", where)
    expected = "a test of whether its state can be restored" if member is VineTRPO else "step 3 of the rollout"
    assert when == f"In {'a reset' if way == 'reset' else expected}"
    assert_as_it_was_and_goes_on(model, before, tmp_path)
    env.set_attr("way", None)
    model.set_env(env)
    model.learn(24, reset_num_timesteps=False)
    env.close()


@pytest.mark.parametrize(("way", "how"), [("killed", "was ended by SIGKILL"), ("exits", "ended with exit code 7")])
def test_worker_that_ends_is_named(way: str, how: str, tmp_path: Path) -> None:
    env = envs(in_workers, [None, None, way, None])
    model = make(env)
    before = parameters_of(model)
    with pytest.raises(
        EOFError, match=rf"^There is no worker 1 \(process \d+, environments 2 to 3\) any more, it {how}"
    ) as error:
        model.learn(16)
    assert error.value.__notes__ == ["In step 3 of the rollout"]
    env.close()
    assert_as_it_was_and_goes_on(model, before, tmp_path)


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
@pytest.mark.parametrize(
    ("way", "space", "error", "words"),
    [
        ("shape", "box", ValueError, r"environment 1.* step 3 of the rollout"),
        ("dtype", "box", (ValueError, TypeError), r"(environment 1|Every environment).* step [34] of the rollout"),
        ("key", "dict", KeyError, r"environment 1.* in step 3 of the rollout"),
    ],
)
def test_wrong_observation_is_named(kind: Any, way: str, space: str, error: Any, words: str, tmp_path: Path) -> None:
    """The exceptions are those that sb3-contrib's TRPO raises for the same environments."""
    env = envs(kind, [None, way], space)
    model = make(env)
    before = parameters_of(model)
    with pytest.raises(error) as caught:
        model.learn(16)
    assert type(caught.value) in (ValueError, TypeError, KeyError)
    (note,) = caught.value.__notes__
    assert re.search(words, note), note
    assert_as_it_was_and_goes_on(model, before, tmp_path, space)


def test_wrong_shape_of_a_single_process_is_named() -> None:
    """It can be stacked, so it is the network that fails."""
    model = make(envs(SubprocVecEnv, ["shape"]))
    with pytest.raises((ValueError, RuntimeError)) as error:
        model.learn(16)
    assert error.value.__notes__ == [
        "Environment 0 gave an observation that has shape (5,), its space (4,) in step 4 of the rollout"
    ]


@pytest.mark.parametrize(
    ("way", "how"),
    [("killed", "was ended by SIGKILL"), ("exits", "ended with exit code 7"), ("raises", "ended with exit code 1")],
)
def test_process_that_ends_is_named(way: str, how: str, tmp_path: Path) -> None:
    model = make(envs(SubprocVecEnv, [None, way]))
    before = parameters_of(model)
    with pytest.raises((EOFError, ConnectionResetError, BrokenPipeError)) as error:
        model.learn(16)
    words = str(error.value)
    assert words.startswith("Environment 1 (process ")
    assert f") {how} in step 3 of the rollout; what it raised" in words
    assert_as_it_was_and_goes_on(model, before, tmp_path)


def test_process_that_is_killed_from_outside_is_named(tmp_path: Path) -> None:
    env = envs(SubprocVecEnv, [None, None])
    model = make(env)

    class Kills(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 5:
                os.kill(env.unwrapped.processes[0].pid, signal.SIGKILL)
            return True

    before = parameters_of(model)
    with pytest.raises((EOFError, ConnectionResetError, BrokenPipeError), match=r"^Environment 0 .* SIGKILL in step 6 of the"):
        model.learn(16, Kills())
    assert_as_it_was_and_goes_on(model, before, tmp_path)


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_reset_that_fails_is_named(kind: Any, tmp_path: Path) -> None:
    model = make(envs(kind, [None, "reset"]))
    before = parameters_of(model)
    with pytest.raises((MineError, EOFError, ConnectionResetError)) as error:
        model.learn(16)
    words = " ".join([str(error.value), *getattr(error.value, "__notes__", [])])
    assert "nvironment 1 " in words
    assert "in a reset" in words
    assert_as_it_was_and_goes_on(model, before, tmp_path)


def test_branch_that_fails_is_named() -> None:
    model = make(envs(DummyVecEnv, [None, None]), VineTRPO)

    class Breaks(BaseCallback):
        def _on_step(self) -> bool:
            if self.locals["branching"]:
                model.env.unwrapped.envs[1].unwrapped.way = "raises"
            return True

    before = parameters_of(model)
    with pytest.raises(MineError) as error:
        model.learn(16, Breaks())
    assert error.value.__notes__ == ["From environment 1 in a branch"]
    assert all(th.equal(part, before[name]) for name, part in parameters_of(model).items())


def test_exceptions_of_others_have_no_note() -> None:
    model = make(envs(DummyVecEnv, [None, None]))

    class Fails(BaseCallback):
        def _on_step(self) -> bool:
            raise MineError("in a callback")

    with pytest.raises(MineError) as error:
        model.learn(16, Fails())
    assert not hasattr(error.value, "__notes__")


class EndsInAnotherShape(Failing):
    """Whose last observation, at a time limit, has another shape."""

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return (np.zeros(5, np.float32) if rest[2] else observation), *rest


@pytest.mark.parametrize("is_general", [False, True])
def test_wrong_last_observation_is_named(is_general: bool) -> None:
    env: Any = DummyVecEnv([Failing, EndsInAnotherShape])
    model = TRPO("MlpPolicy", env, n_steps=32, batch_size=64, seed=0, device="cpu")
    if is_general:
        force_general_path(model)
    before = parameters_of(model)
    with pytest.raises(ValueError, match="observation shape") as error:
        model.learn(64)
    words = "Environment 1 ended an episode with an observation that has shape (5,), its space (4,), in step 20 of the rollout"
    assert error.value.__notes__ == [words]
    assert all(th.equal(part, before[name]) for name, part in parameters_of(model).items())
