"""Numbers of an environment that are not finite reach neither statistics nor parameters, nor an environment as an action."""

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO
from sb3_trpo_plus.rollouts.checks import NotFiniteError, ObservationNotFiniteError
from tests.conftest import ACTION_SPACES, RandomEnv, parameters_of
from tests.rollouts.conftest import OBSERVATION_SPACES, Recorder, force_general_path

FAMILY: list[Any] = [TRPO, NPG, PPOPenalty, VineTRPO]
NAN, INF = np.nan, np.inf


class Spoilt(RandomEnv):
    """Gives a number that is not finite in some of its steps, and refuses actions that are not."""

    quantity, value, at = "reward", NAN, frozenset[int]()
    n_steps = 0

    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        return (observation * self.value if self.quantity == "first observation" else observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert np.isfinite(action).all(), "no action is taken on it"
        observation, reward, *rest = super().step(action)
        self.n_steps += 1
        if self.n_steps in self.at:
            if self.quantity == "reward":
                reward = self.value
            else:
                part = observation["vector"] if isinstance(observation, dict) else observation
                part[1] = self.value
        return observation, reward, *rest  # type: ignore[return-value]


def envs(quantity: str, value: float = NAN, at: Any = (5,), space: str = "box", normalised: bool = True, **kwargs: Any) -> Any:
    """Three environments, of which the second is spoilt."""
    all_of_them = [Spoilt(copy.deepcopy(OBSERVATION_SPACES[space]), ACTION_SPACES["box"]) for _ in range(3)]
    all_of_them[1].quantity, all_of_them[1].value, all_of_them[1].at = quantity, value, frozenset(at)
    env = DummyVecEnv([lambda one=one: one for one in all_of_them])  # type: ignore[misc]
    return VecNormalize(env, **kwargs) if normalised else env


def make(env: Any, member: Any = TRPO, **kwargs: Any) -> Any:
    settings: dict[str, Any] = {"n_steps": 8, "batch_size": 24, "n_critic_updates": 1, "seed": 0, "device": "cpu", **kwargs}
    if member is VineTRPO:
        settings.update(n_rollout_states=4, rollout_length=3, n_actions=2)
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    return member(policy, env, **settings)


def numbers_of(env: VecNormalize) -> list[Any]:
    of_observations: Any = env.obs_rms if env.norm_obs else {}
    all_of_them = of_observations.values() if isinstance(of_observations, dict) else [of_observations]
    return [np.array(part) for one in (env.ret_rms, *all_of_them) for part in (one.mean, one.var, one.count)]


def assert_finite(model: Any, env: Any) -> None:
    if isinstance(env, VecNormalize):
        assert all(np.isfinite(part).all() for part in numbers_of(env))
        assert np.isfinite(env.returns).all()
    assert all(value.isfinite().all() for value in parameters_of(model).values())


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("mode", ["skip", None])
@pytest.mark.parametrize("member", FAMILY)
def test_reward_is_skipped_with_its_rollout(member: Any, mode: str | None, normalised: bool, value: float) -> None:
    """One warning, which names the environment and the step; afterwards the training goes on."""
    env = envs("reward", value, normalised=normalised)
    model = make(env, member, on_nonfinite=mode)
    before = parameters_of(model)
    words = rf"rollout's rewards are not all finite.*Environment 1 gave a reward .* in step 5 of the rollout: {value}$"
    with pytest.warns(UserWarning, match=words):
        model.learn(24)
    assert all(th.equal(part, before[name]) for name, part in parameters_of(model).items())
    assert_finite(model, env)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.learn(24, reset_num_timesteps=False)
    assert any(not th.equal(part, before[name]) for name, part in parameters_of(model).items())
    assert model._skips.counts == {"rollout_not_finite": 1}
    assert_finite(model, env)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("quantity", ["reward", "observation"])
@pytest.mark.parametrize("member", FAMILY)
def test_error_names_environment_step_and_quantity_in_a_line(member: Any, quantity: str, normalised: bool) -> None:
    """The model is as it was, and goes on, also without ``reset_num_timesteps``."""
    env = envs(quantity, normalised=normalised)
    model = make(env, member, on_nonfinite="raise")
    before = parameters_of(model)
    step = "in step 5" if quantity == "reward" else "before step 6"
    words = f"^Environment 1 gave an? {quantity} that is not finite {step} of the rollout: nan"
    with pytest.raises(NotFiniteError, match=words) as error:
        model.learn(24)
    assert "\n" not in str(error.value)
    assert all(th.equal(part, before[name]) for name, part in parameters_of(model).items())
    assert_finite(model, env)
    model.learn(24, reset_num_timesteps=False)
    assert any(not th.equal(part, before[name]) for name, part in parameters_of(model).items())
    assert_finite(model, env)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("space", ["box", "dict"])
@pytest.mark.parametrize("way", ["fast", "watched", "general"])
def test_observation_is_skipped_with_its_rollout_and_a_reset(way: str, space: str, normalised: bool) -> None:
    if space == "dict" and normalised:
        env = envs("observation", space=space, norm_obs_keys=["vector"])
    else:
        env = envs("observation", space=space, normalised=normalised)
    model = make(env, on_nonfinite="skip")
    if way == "general":
        force_general_path(model)
    before, ends = parameters_of(model), []

    class Ends(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            ends.append(model.num_timesteps)

    with pytest.warns(
        UserWarning, match="nothing was changed: Environment 1 gave an observation.* before step 6 of the rollout"
    ):
        model.learn(15, [Ends(), *([Recorder()] if way == "watched" else [])] if way != "fast" else None)
    assert model.num_timesteps == 15
    assert ends == ([15] if way != "fast" else [])
    assert all(th.equal(part, before[name]) for name, part in parameters_of(model).items())
    assert_finite(model, env)
    model.learn(24, reset_num_timesteps=False)
    assert model.num_timesteps == 39
    assert any(not th.equal(part, before[name]) for name, part in parameters_of(model).items())
    assert_finite(model, env)


@pytest.mark.parametrize(("value", "normalised"), [(NAN, False), (INF, False), (-INF, False), (NAN, True)])
@pytest.mark.parametrize("space", ["box", "dict"])
@pytest.mark.parametrize("way", ["fast", "watched", "general"])
def test_last_observation_of_an_episode_is_named_as_any_other(way: str, space: str, normalised: bool, value: float) -> None:
    """Its value takes the place of what a time limit cut off. An episode that ends by itself has none, and goes on."""
    keys = {"norm_obs_keys": ["vector"]} if space == "dict" and normalised else {}

    def made(mode: str | None) -> tuple[Any, Any]:
        env = envs("observation", value, at=(20,), space=space, normalised=normalised, **keys)
        model = make(env, on_nonfinite=mode, n_steps=32, batch_size=96)
        if way == "general":
            force_general_path(model)
        return env, model

    callback = Recorder() if way == "watched" else None
    words = "Environment 1 gave an observation.* that is not finite at the end of an episode, in step 20 of the rollout: "
    for mode in ("raise", None):
        env, model = made(mode)
        before = parameters_of(model)
        with pytest.raises(ObservationNotFiniteError, match=words):
            model.learn(96, callback)
        assert all(th.equal(part, before[name]) for name, part in parameters_of(model).items())
        assert_finite(model, env)
    env, model = made("skip")
    before = parameters_of(model)
    with pytest.warns(UserWarning, match=f"nothing was changed: {words}"):
        model.learn(60, callback)
    assert model.num_timesteps == 60
    assert all(th.equal(part, before[name]) for name, part in parameters_of(model).items())
    model.learn(96, callback, reset_num_timesteps=False)
    assert any(not th.equal(part, before[name]) for name, part in parameters_of(model).items())
    assert_finite(model, env)


class EndsByItself(Spoilt):
    """As other environments do where they break."""

    def step(self, action: Any) -> Any:
        observation, reward, _, is_truncated, info = super().step(action)
        return observation, reward, is_truncated, False, info


def test_last_observation_of_an_episode_that_ended_by_itself_is_of_no_use_and_goes_on() -> None:
    def trained(at: tuple[int, ...]) -> Any:
        one = EndsByItself(copy.deepcopy(OBSERVATION_SPACES["box"]), ACTION_SPACES["box"])
        one.quantity, one.at = "observation", frozenset(at)
        return make(DummyVecEnv([lambda: one]), on_nonfinite="raise", n_steps=32, batch_size=32).learn(64)

    spoilt, whole = parameters_of(trained((20,))), parameters_of(trained(()))
    assert all(th.equal(part, whole[name]) for name, part in spoilt.items())


def test_last_observation_of_a_branch_is_named() -> None:
    env = envs("observation", at=(40,), normalised=False)
    with pytest.raises(ObservationNotFiniteError, match="Environment 1 gave an observation that is not finite at the end"):
        make(env, VineTRPO, n_steps=20, batch_size=60).learn(120)


def test_environment_that_always_gives_nan_ends_the_training_at_its_time() -> None:
    env = envs("observation", at=range(1, 10_000))
    model = make(env, on_nonfinite="skip")
    before = parameters_of(model)
    with pytest.warns(UserWarning, match="gave an observation") as caught:
        model.learn(60)
    assert model.num_timesteps == 60
    assert model._skips.counts == {"rollout_not_finite": 20}
    assert len(caught) == 5, "at the first, second, fourth, eighth and sixteenth"
    assert all(th.equal(part, before[name]) for name, part in parameters_of(model).items())


@pytest.mark.parametrize("mode", ["raise", "skip", None])
@pytest.mark.parametrize("normalised", [True, False])
def test_first_observation_is_always_an_error(normalised: bool, mode: str | None) -> None:
    """There is nothing to go on from."""
    env = envs("first observation", at=(), normalised=normalised)
    model = make(env, on_nonfinite=mode)
    with pytest.raises(ObservationNotFiniteError, match="Environment 1 gave an observation that is not finite"):
        model.learn(24)
    assert_finite(model, env)
    env.unwrapped.envs[1].quantity = "reward"
    model.learn(24, reset_num_timesteps=False)
    assert model._n_updates == 1
    assert_finite(model, env)


def test_statistics_are_those_of_the_steps_before_and_after() -> None:
    """As if the spoilt step had not been: its rewards, and its observations if these were spoilt, do not count."""
    env = envs("reward", INF, at=(3,))
    model = make(env, on_nonfinite="skip")
    counts = []

    class Counts(BaseCallback):
        def _on_step(self) -> bool:
            counts.append(env.ret_rms.count)
            return True

    with pytest.warns(UserWarning, match="not finite"):
        model.learn(24, Counts())
    assert np.diff(counts).round(6).tolist() == [3, 0, 3, 3, 3, 3, 3]


def test_rewards_whose_squares_overflow_are_told_and_leave_no_trace() -> None:
    """They are finite, and would spoil the statistics as well."""

    class Wide(DummyVecEnv):
        def step_wait(self) -> Any:
            observations, rewards, dones, infos = super().step_wait()
            rewards = rewards.astype(np.float64)
            rewards[1] = 1e200
            return observations, rewards, dones, infos

    env = VecNormalize(Wide([lambda: RandomEnv(OBSERVATION_SPACES["box"], ACTION_SPACES["box"])] * 2))
    model = make(env)
    with pytest.warns(UserWarning, match="Environment 1 gave a number in step 1 .* can't hold: 1e"):
        model.learn(16)
    assert_finite(model, env)


@pytest.mark.parametrize("mode", ["raise", None])
def test_observation_whose_square_overflows_is_an_error(mode: str | None) -> None:
    env = envs("observation", 3e38, at=range(5, 10_000))
    with pytest.raises(ObservationNotFiniteError, match=r"Environment 1 gave a number before step 6 .* can't hold: 3e"):
        make(env, on_nonfinite=mode).learn(24)
    assert all(np.isfinite(part).all() for part in numbers_of(env))


def test_each_of_several_normalisers_is_looked_after() -> None:
    inner = envs("observation", at=(5,))
    env = VecNormalize(VecFrameStack(inner, 2), norm_reward=False)
    model = make(env, on_nonfinite="skip")
    with pytest.warns(UserWarning, match="Environment 1 gave an observation"):
        model.learn(24)
    assert_finite(model, env)
    assert_finite(model, inner)


def test_run_without_such_numbers_is_the_same_with_any_mode() -> None:
    """Bit by bit, statistics included."""
    outcomes = []
    for mode in ("raise", "skip", None):
        env = envs("reward", at=())
        model = make(env, on_nonfinite=mode).learn(72)
        outcomes.append((parameters_of(model), copy.deepcopy(numbers_of(env))))
    for parameters, numbers in outcomes[1:]:
        assert all(th.equal(part, outcomes[0][0][name]) for name, part in parameters.items())
        assert all(np.array_equal(one, other) for one, other in zip(numbers, outcomes[0][1], strict=True))


@pytest.mark.parametrize("mode", ["raise", "skip", None])
@pytest.mark.parametrize("quantity", ["reward", "observation"])
def test_branches_of_the_vine(quantity: str, mode: str | None) -> None:
    """From the ninth step of the environment on, which is after the trunk."""
    env = envs(quantity, at=range(9, 10_000))
    model = make(env, VineTRPO, on_nonfinite=mode)
    before = parameters_of(model)
    if mode == "raise" or (mode is None and quantity == "observation"):
        words = "returns of branches" if quantity == "reward" else "gave an observation that is not finite in a branch"
        with pytest.raises(NotFiniteError, match=words):
            model.learn(24)
    else:
        words = "returns of branches are not all finite" if quantity == "reward" else "not finite in a branch"
        with pytest.warns(UserWarning, match=words):
            model.learn(24)
    assert all(th.equal(part, before[name]) for name, part in parameters_of(model).items())
    assert_finite(model, env)


def test_mode_is_saved(tmp_path: Any) -> None:
    make(envs("reward"), on_nonfinite="skip").save(tmp_path / "model.zip")
    assert TRPO.load(tmp_path / "model.zip").on_nonfinite == "skip"
