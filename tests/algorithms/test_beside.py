"""The critic's fit beside the next rollout, against the fit in turn."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, TrainingCheckpoint
from sb3_trpo_plus.algorithms import resuming
from sb3_trpo_plus.critic.plain_fit import PlainFit
from sb3_trpo_plus.rollouts import beside

Array = npt.NDArray[Any]


class SteppedElsewhere(DummyVecEnv):
    """Says of itself what is true of worker processes, so that these tests need none."""

    leaves_interpreter_free = True


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fits that were started in a thread take their time; returns what becomes of them, in its order."""
    told: list[str] = []
    run, write_back = PlainFit.run, PlainFit.write_back

    def slow(self: PlainFit) -> None:
        told.append("started")
        time.sleep(0.2)
        run(self)

    def watched(self: PlainFit) -> Any:
        told.append("written")
        return write_back(self)

    monkeypatch.setattr(PlainFit, "run", slow)
    monkeypatch.setattr(PlainFit, "write_back", watched)
    monkeypatch.setattr(beside, "n_cores", lambda: 2)
    return told


def environment(vec_env: type[VecEnv] = SteppedElsewhere, env_id: str = "CartPole-v1") -> VecEnv:
    return make_vec_env(env_id, 2, seed=0, vec_env_cls=vec_env)  # type: ignore[arg-type]


def train(
    cls: Any, in_turn: bool, n_rollouts: int = 3, callback: Any = None, env: VecEnv | None = None, **kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        if in_turn:
            patch.setattr(resuming, "has_time_beside", lambda *_: False)
        env = env or environment()
        model = cls("MlpPolicy", env, n_steps=64, batch_size=32, seed=0, device="cpu", **kwargs)
        logged: dict[str, Any] = {}
        dump = model.dump_logs

        def noting(iteration: int = 0) -> None:
            model._settle_critic()
            logged.update({f"{iteration} {name}": value for name, value in model.logger.name_to_value.items()})
            dump(iteration)

        model.dump_logs = noting
        model.learn(n_rollouts * 128, callback)
        del model.dump_logs
    return model, {name: value for name, value in logged.items() if "time/" not in name}


def state(model: Any) -> list[Array]:
    optimiser = [part for one in model.policy.optimizer.state.values() for part in one.values()]
    gradients = [parameter.grad for parameter in model.policy.parameters() if parameter.grad is not None]
    return [tensor.detach().numpy().copy() for tensor in (*model.policy.state_dict().values(), *optimiser, *gradients)]


def assert_equal(one: Any, other: Any) -> None:
    for mine, theirs in zip(state(one), state(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("cls", [TRPO, NPG, PPOPenalty])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_equal_to_the_bit_to_the_fit_in_turn(cls: Any, env_id: str, threads: list[str]) -> None:
    model, logged = train(cls, False, env=VecNormalize(environment(env_id=env_id)))
    # The last fit is in turn: nothing follows it.
    assert threads == ["started", "written"] * 3
    random = np.random.get_state(legacy=False)["state"]["pos"], th.get_rng_state()
    other, expected = train(cls, True, env=VecNormalize(environment(env_id=env_id)))
    assert_equal(model, other)
    assert logged == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    assert any("value_loss" in name for name in logged)
    assert random[0] == np.random.get_state(legacy=False)["state"]["pos"]
    assert th.equal(random[1], th.get_rng_state())
    np.testing.assert_array_equal(model.rollout_buffer.values, other.rollout_buffer.values)
    np.testing.assert_array_equal(model.rollout_buffer.log_probs, other.rollout_buffer.log_probs)


def test_the_rollout_goes_on_beside_the_fit(monkeypatch: pytest.MonkeyPatch, threads: list[str]) -> None:
    env = environment()
    step = env.step_wait
    monkeypatch.setattr(env, "step_wait", lambda: (threads.append("step"), step())[1])
    train(TRPO, False, env=env, n_rollouts=2)
    began = threads.index("started")
    # The thread and the rollout begin in either order.
    assert threads[began : threads.index("written")].count("step") >= 63
    assert threads[-2:] == ["started", "written"]


def test_saved_in_the_middle_of_a_rollout(tmp_path: Path, threads: list[str]) -> None:
    for in_turn in (False, True):
        train(TRPO, in_turn, callback=CheckpointCallback(80, str(tmp_path / str(in_turn))))
    files = sorted(path.name for path in (tmp_path / "True").glob("*.zip"))
    assert len(files) == 2
    for name in files:
        assert_equal(*(TRPO.load(tmp_path / str(in_turn) / name, device="cpu") for in_turn in (False, True)))


def test_checkpoints_and_evaluations_see_the_fitted_critic(tmp_path: Path) -> None:
    seen: dict[bool, list[Array]] = {False: [], True: []}
    for in_turn, found in seen.items():
        evaluation = EvalCallback(environment(DummyVecEnv), n_eval_episodes=1, eval_freq=40, verbose=0)
        original = evaluation._log_success_callback

        def look(locals_: Any, globals_: Any, found: list[Array] = found, original: Any = original) -> None:
            found.append(state(locals_["model"])[-1])
            original(locals_, globals_)

        evaluation._log_success_callback = look  # type: ignore[method-assign]
        checkpoints = TrainingCheckpoint(tmp_path / str(in_turn), seconds=0, keep=10)
        train(TRPO, in_turn, callback=[evaluation, checkpoints])
    assert len(seen[False]) > 100
    for mine, theirs in zip(seen[False], seen[True], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    one, other = (TRPO.resume(tmp_path / str(in_turn), environment(), device="cpu") for in_turn in (False, True))
    assert_equal(one, other)


def test_the_policy_is_an_attribute_like_any_other() -> None:
    model, _ = train(TRPO, False)
    assert "policy" in vars(model)
    assert not hasattr(model, "no_such_thing")
    with pytest.raises(AttributeError, match="'TRPO' object has no attribute 'no_such_thing'"):
        _ = model.no_such_thing
    assert model._fit_beside is None


class Watching(BaseCallback):
    def _on_step(self) -> bool:
        return True


class Custom(VecEnvWrapper):
    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


@pytest.mark.parametrize(
    ("callback", "make_env"),
    [
        (Watching, environment),
        (lambda: lambda *_: True, environment),
        (lambda: None, lambda: Custom(environment())),
        (lambda: None, lambda: environment(DummyVecEnv)),
    ],
    ids=["callback", "function", "wrapper", "DummyVecEnv"],
)
def test_code_of_users_never_meets_a_fit_that_goes_on(
    callback: Callable[[], Any], make_env: Callable[[], VecEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[bool] = []
    monkeypatch.setattr(TRPO, "_start_fit_beside", lambda *_: started.append(True))
    train(TRPO, False, callback=callback(), env=make_env())
    assert not started


def test_a_single_core_fits_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "n_cores", lambda: 1)
    monkeypatch.setattr(TRPO, "_start_fit_beside", lambda *_: pytest.fail("started"))
    train(TRPO, False)


def test_an_error_in_the_fit_reaches_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: PlainFit) -> None:
        raise MemoryError("no memory for the critic")

    monkeypatch.setattr(PlainFit, "run", fail)
    with pytest.raises(MemoryError, match="no memory for the critic"):
        train(TRPO, False)


def test_an_error_in_the_rollout_leaves_the_fitted_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    models = []
    for in_turn in (False, True):
        env = environment()
        step, count = env.step_wait, [0]

        def failing(step: Any = step, count: list[int] = count) -> Any:
            count[0] += 1
            if count[0] == 70:
                raise OSError("the simulator has gone")
            return step()

        monkeypatch.setattr(env, "step_wait", failing)
        with pytest.MonkeyPatch.context() as patch:
            if in_turn:
                patch.setattr(resuming, "has_time_beside", lambda *_: False)
            model = TRPO("MlpPolicy", env, n_steps=64, batch_size=32, seed=0, device="cpu")
            with pytest.raises(OSError, match="has gone"):
                model.learn(1000)
        models.append(model)
    assert_equal(*models)


def test_a_fit_that_is_not_finite_is_told_as_in_turn() -> None:
    kwargs = {"learning_rate": 1e30}
    with pytest.warns(UserWarning, match="critic"):
        model, logged = train(TRPO, False, **kwargs)
    with pytest.warns(UserWarning, match="critic"):
        other, expected = train(TRPO, True, **kwargs)
    assert_equal(model, other)
    assert logged == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    assert model._skips.counts == other._skips.counts
    assert model._skips.counts["critic_fit"] == 3


def test_stopped_by_a_callback_in_the_middle(threads: list[str]) -> None:
    model, _ = train(TRPO, False, callback=StopTrainingOnMaxEpisodes(4))
    assert 128 < model.num_timesteps < 256
    assert threads == ["started", "written"]
    assert_equal(model, train(TRPO, True, callback=StopTrainingOnMaxEpisodes(4))[0])
