"""Schedules: of the learning rate, and of what this library lets be one, on every path and in every learn()."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_trpo_plus import VineTRPO
from tests.contract.programs import MORE_STEPS, Algorithm, Episodes, Looking, Raises, contract, envs, make

N = 64


def falling(progress: float) -> float:
    """A learning rate that falls with the remaining progress."""
    return 1e-3 * (0.1 + progress)


class Rates(Looking):
    """The optimiser's learning rate and the progress, when a rollout begins and when the training has ended."""

    def __init__(self) -> None:
        super().__init__(rollout_start=_rate, training_end=_rate)


def _rate(callback: Looking) -> tuple[float, float]:
    model = callback.model
    return float(model.policy.optimizer.param_groups[0]["lr"]), float(model._current_progress_remaining)


def rates(model: Any, n_rollouts: int, **kwargs: Any) -> list[tuple[float, float]]:
    callback = Rates()
    model.learn(n_rollouts * N, callback, **kwargs)
    return callback.seen


SCHEDULES: dict[str, Any] = {
    "number": 3e-3,
    "function": falling,
    "linear": LinearSchedule(2e-3, 1e-4, 0.5),
    "constant": ConstantSchedule(5e-3),
    "float schedule": FloatSchedule(falling),
    "numpy number": lambda progress: np.float64(1e-3 * progress + 1e-4),
}


@pytest.mark.parametrize("name", SCHEDULES)
@contract(without={VineTRPO: MORE_STEPS})
def test_learning_rate(algorithm: Algorithm, name: str) -> Any:
    """Each kind of schedule: the optimiser's rate in each rollout of a training."""
    return rates(make(algorithm, learning_rate=SCHEDULES[name]), 4)


@contract(without={VineTRPO: MORE_STEPS})
def test_learning_rate_in_a_second_learn(algorithm: Algorithm) -> Any:
    """A second ``learn`` goes through the schedule anew."""
    model = make(algorithm, learning_rate=falling)
    return [[rate for rate, _ in rates(model, 3)] for _ in range(2)]


@contract(without={VineTRPO: MORE_STEPS})
def test_learning_rate_when_going_on(algorithm: Algorithm) -> Any:
    """``reset_num_timesteps=False``: progress counts from the first call's start to the second's end."""
    model = make(algorithm, learning_rate=falling)
    first = rates(model, 2)
    return first, [rate for rate, _ in rates(model, 2, reset_num_timesteps=False)], model.num_timesteps


@contract(without={VineTRPO: MORE_STEPS})
def test_learning_rate_of_a_loaded_model(algorithm: Algorithm) -> Any:
    """A saved schedule goes on in a loaded model."""
    model, file = make(algorithm, learning_rate=falling), io.BytesIO()
    rates(model, 2)
    model.save(file)
    file.seek(0)
    loaded = algorithm.load(file, env=envs())
    return [rate for rate, _ in rates(loaded, 2)], falling(0.5) == loaded.lr_schedule(0.5)


@contract(without={VineTRPO: MORE_STEPS})
def test_schedule_is_asked_for_progress_between_1_and_0(algorithm: Algorithm) -> Any:
    """What the schedule is called with, once a training begins: SB3's numbers, none below 0."""
    asked: list[float] = []

    def schedule(progress: float) -> float:
        asked.append(progress)
        return 1e-3

    model = make(algorithm, learning_rate=schedule)
    asked.clear()
    model.learn(3 * N)
    assert all(isinstance(progress, float) for progress in asked)
    return sorted(set(asked))


@contract()
def test_schedule_never_gets_a_negative_progress(algorithm: Algorithm) -> Any:
    """A training whose last rollout is behind its end."""
    asked: list[float] = []

    def schedule(progress: float) -> float:
        asked.append(progress)
        return 1e-3

    make(algorithm, learning_rate=schedule).learn(N)
    return min(asked) >= 0


@contract(without={VineTRPO: MORE_STEPS})
def test_progress_in_each_step(algorithm: Algorithm) -> Any:
    """``model._current_progress_remaining`` in `_on_step`, as callbacks read it for their own schedules."""
    model, progress = make(algorithm, n_steps=4, batch_size=8), list[float]()
    model.learn(24, Looking(step=lambda callback: progress.append(callback.model._current_progress_remaining)))
    return progress


@contract(without={VineTRPO: MORE_STEPS})
def test_changed_learning_rate_of_a_loaded_model(algorithm: Algorithm) -> Any:
    """``load(..., custom_objects={"learning_rate": ...})`` and ``load(..., learning_rate=...)``."""
    model, file, found = make(algorithm), io.BytesIO(), list[Any]()
    model.save(file)
    for kwargs in ({"custom_objects": {"learning_rate": 0.02, "lr_schedule": lambda _: 0.02}}, {"learning_rate": 0.03}):
        file.seek(0)
        loaded = algorithm.load(file, env=envs(), **kwargs)
        found.append(rates(loaded, 1)[-1][0])
    return found


class Custom(ActorCriticPolicy):
    def get_distribution(self, obs: Any) -> Any:
        return super().get_distribution(obs)


PATHS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: {},
    "dict": lambda: {
        "env": envs(observation_space=spaces.Dict({"a": spaces.Box(-1.0, 1.0, (3,))})),
        "policy": "MultiInputPolicy",
    },
    "images": lambda: {
        "env": envs("discrete", spaces.Box(0, 255, (3, 36, 36), np.uint8)),
        "policy": "CnnPolicy",
        "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 4}, "net_arch": []},
        "n_steps": 16,
        "batch_size": 32,
    },
    "custom policy": lambda: {"policy": Custom},
    "gsde": lambda: {"use_sde": True},
    "one environment": lambda: {"env": envs(n_envs=1), "n_steps": 64},
}


def gammas(model: Any, total_timesteps: int, **kwargs: Any) -> list[float]:
    """The discount factor of each rollout's buffer, with which its truncated episodes' rewards have been bootstrapped."""
    found: list[float] = []
    model.learn(total_timesteps, Looking(rollout_end=lambda it: found.append(float(it.model.rollout_buffer.gamma))), **kwargs)
    return found


def half(progress: float) -> float:
    return 0.5 + progress / 4


@pytest.mark.parametrize("path", PATHS)
@contract(documented=(0.75, True), contrib=Raises(TypeError))
def test_gamma_schedule(algorithm: Algorithm, path: str) -> Any:
    """``gamma`` may be a schedule, truncated episodes included, whatever the policy; sb3-contrib takes numbers alone."""
    model = make(algorithm, gamma=half, **PATHS[path]())
    found = gammas(model, 2 * model.n_steps * model.n_envs)
    return found[0], all(0.5 <= gamma <= 0.75 for gamma in found)


@pytest.mark.parametrize("path", ["plain", "custom policy"])
@contract(documented=True, contrib=Raises(TypeError))
def test_gamma_schedule_is_that_of_the_bootstraps(algorithm: Algorithm, path: str) -> Any:
    """A schedule that is always 0.6 fills the buffer as the number 0.6 does."""
    found = []
    for gamma in (lambda _: 0.6, 0.6):
        model = make(algorithm, gamma=gamma, **PATHS[path]())
        model.learn(N, Looking(rollout_end=lambda callback: found.append(callback.model.rollout_buffer.rewards.copy())))
    return bool(np.array_equal(*found[:2]))


@contract(without={VineTRPO: MORE_STEPS}, documented=[[0.75, 0.625], [0.75, 0.625]], contrib=Raises(TypeError))
def test_gamma_schedule_in_a_second_learn(algorithm: Algorithm) -> Any:
    """A second ``learn`` begins at the schedule's beginning."""
    model = make(algorithm, gamma=half, env=envs(env_class=_never_truncated()))
    return [gammas(model, 2 * N) for _ in range(2)]


@contract(without={VineTRPO: MORE_STEPS}, documented=[0.625, 0.5625], contrib=Raises(TypeError))
def test_gamma_schedule_when_going_on(algorithm: Algorithm) -> Any:
    """``reset_num_timesteps=False``: at 128 of 256 steps, then 192."""
    model = make(algorithm, gamma=half, env=envs(env_class=_never_truncated()))
    gammas(model, 2 * N)
    return gammas(model, 2 * N, reset_num_timesteps=False)


@contract(without={VineTRPO: MORE_STEPS}, documented=[0.75, 0.625], contrib=Raises(TypeError))
def test_gamma_schedule_of_a_loaded_model(algorithm: Algorithm) -> Any:
    """A loaded model's ``learn`` begins at the schedule's beginning."""
    model, file = make(algorithm, gamma=half, env=envs(env_class=_never_truncated())), io.BytesIO()
    gammas(model, 2 * N)
    model.save(file)
    file.seek(0)
    return gammas(algorithm.load(file, env=envs()), 2 * N)


def _never_truncated() -> Any:
    """So that what a schedule does at the end of a truncated episode is another case's."""

    class Endless(Episodes):
        def step(self, action: Any) -> Any:
            observation, reward, terminated, _, info = super().step(action)
            return observation, reward, terminated, False, info

    return Endless


@pytest.mark.parametrize("name", ["target_kl", "ent_coef"])
@contract(without={VineTRPO: MORE_STEPS}, documented=[[0.05, 0.0], [0.05, 0.0]], contrib=Raises(TypeError))
def test_other_schedules_in_a_second_learn(algorithm: Algorithm, name: str) -> Any:
    """``target_kl`` and ``ent_coef`` as schedules, logged after each update; sb3-contrib has none."""
    found: list[list[float]] = []
    model = make(algorithm, **{name: lambda progress: 0.1 * progress})

    def tag(callback: Looking) -> float:
        return round(float(callback.model.logger.name_to_value[f"train/{name}"]), 6)

    for _ in range(2):
        callback = Looking(rollout_start=tag, training_end=tag)
        with warnings.catch_warnings():
            # A target_kl of 0 leaves no step.
            warnings.simplefilter("ignore")
            model.learn(2 * N, callback)
        found.append(callback.seen[1:])
    return found
