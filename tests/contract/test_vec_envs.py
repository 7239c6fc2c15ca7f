"""Vectorised environments: SB3's, wrapped in any order, and users' own; how episodes end; changing environments."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

from sb3_trpo_plus import VineTRPO
from sb3_trpo_plus.states import Restorable
from tests.contract.programs import MORE_STEPS, Algorithm, Episodes, Looking, contract, envs, learn, looks, make, rollout

TRIED = {VineTRPO: "it steps the environments before, to see whether they come back"}
STATES = {VineTRPO: "the state of these environments can't be saved"}
DICT = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (4,)), "b": spaces.Box(-1.0, 1.0, (2,))})
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)


class Negating(VecEnvWrapper):
    """A user's wrapper."""

    def reset(self) -> Any:
        return -self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return -observations, 2 * rewards, dones, infos


def _frozen(env: VecEnv) -> VecNormalize:
    return VecNormalize(env, training=False, norm_reward=False)


STACKS: dict[str, Callable[[], VecEnv]] = {
    "dummy": envs,
    "normalize": lambda: VecNormalize(envs()),
    "normalize observations": lambda: VecNormalize(envs(), norm_reward=False, clip_obs=0.5),
    "normalize, frozen": lambda: _frozen(envs()),
    "normalize a dict": lambda: VecNormalize(envs(observation_space=DICT), norm_obs_keys=["a"]),
    "frame stack": lambda: VecFrameStack(envs(), 3),
    "monitor": lambda: VecMonitor(envs()),
    "check nan": lambda: VecCheckNan(envs(), raise_exception=True),
    "transpose": lambda: VecTransposeImage(envs("discrete", IMAGE)),
    "extract": lambda: VecExtractDictObs(envs(observation_space=DICT), "a"),
    "own wrapper": lambda: Negating(envs()),
    "normalize over own wrapper over frame stack": lambda: VecNormalize(Negating(VecFrameStack(envs(), 2))),
    "frame stack over normalize": lambda: VecFrameStack(VecNormalize(envs()), 2),
}


@pytest.mark.parametrize("name", STACKS)
@contract()
def test_stack(algorithm: Algorithm, name: str) -> Any:
    """SB3's wrappers and a user's own: the same rollout, and the update goes through."""
    policy = "MultiInputPolicy" if name == "normalize a dict" else "MlpPolicy"
    model = make(algorithm, STACKS[name](), policy)
    found = rollout(model)
    learn(model)
    return found, type(model.get_env()).__name__


@contract(without={VineTRPO: "it asks for Restorable in the processes, see below"})
def test_processes(algorithm: Algorithm) -> Any:
    """``SubprocVecEnv``, forked: the rollout of ``DummyVecEnv``."""
    env = envs(vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    try:
        return rollout(make(algorithm, env))
    finally:
        env.close()


def test_vine_in_processes() -> None:
    """The vine's error says what to do about processes, and that works."""
    processes: dict[str, Any] = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}}
    for kwargs, works in ((processes, False), ({**processes, "wrapper_class": Restorable}, True)):
        env = envs(**kwargs)
        try:
            if works:
                make(VineTRPO, env).learn(64)
            else:
                with pytest.raises(TypeError, match=r"Restorable.*wrapper_class=Restorable"):
                    make(VineTRPO, env).learn(64)
        finally:
            env.close()


class Own(VecEnv):
    """A user's VecEnv that steps all environments at once, as simulators on GPUs have."""

    def __init__(self, n: int = 3) -> None:
        super().__init__(n, spaces.Box(-2.0, 2.0, (4,)), spaces.Box(-1.0, 1.0, (2,)))
        self.random = np.random.default_rng(0)

    def _observe(self) -> Any:
        return self.random.uniform(-2, 2, (self.num_envs, 4)).astype(np.float32)

    def reset(self) -> Any:
        self.time = np.zeros(self.num_envs, dtype=int)
        return self._observe()

    def step_async(self, actions: Any) -> None:
        assert actions.shape == (self.num_envs, 2)
        self.actions = actions

    def step_wait(self) -> Any:
        self.time += 1
        dones = self.time >= 5 + np.arange(self.num_envs)
        self.time[dones] = 0
        infos = [{"TimeLimit.truncated": bool(index % 2), "terminal_observation": np.ones(4, np.float32)} if done else {}
                 for index, done in enumerate(dones)]  # fmt: skip
        return self._observe(), -np.square(self.actions).sum(axis=1).astype(np.float32), dones, infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise AttributeError(method_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


@pytest.mark.parametrize("wrap", [lambda env: env, VecMonitor, VecNormalize], ids=["bare", "monitor", "normalize"])
@contract(without=STATES)
def test_own_vec_env(algorithm: Algorithm, wrap: Callable[[VecEnv], VecEnv]) -> Any:
    """A VecEnv of the user's, bare and wrapped."""
    return rollout(make(algorithm, wrap(Own())))


def test_vine_says_what_it_can_not_do_with_an_own_vec_env() -> None:
    """An error that names the class and says what to do, before anything is collected."""
    model = make(VineTRPO, Own())
    with pytest.raises((TypeError, ValueError), match="Own") as error:
        model.learn(64)
    assert len(str(error.value)) > 60


class Cut(gym.Env[Any, Any]):
    """Never ends by itself; rewards of 1."""

    observation_space = spaces.Box(-1.0, 1.0, (4,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.observe(), {}

    def observe(self) -> Any:
        return self.np_random.uniform(-1, 1, 4).astype(np.float32)

    def step(self, action: Any) -> Any:
        return self.observe(), 1.0, False, False, {}


@contract()
def test_time_limits_are_bootstrapped(algorithm: Algorithm) -> Any:
    """``TimeLimit``: the reward of the last step has the discounted value of the last observation."""
    found = rollout(make(algorithm, make_vec_env(lambda: TimeLimit(Cut(), 5), 2, seed=0)))
    bootstrapped = (found["rewards"] != 1.0).sum(axis=1)
    assert bootstrapped[4] == 2
    return found["rewards"], bootstrapped


@contract()
def test_terminations_are_not_bootstrapped(algorithm: Algorithm) -> Any:
    """An episode that ends and is cut off at the same step has ended."""

    class Both(Episodes):
        def step(self, action: Any) -> Any:
            observation, reward, _, _, info = super().step(action)
            return observation, reward, self.steps >= 4, self.steps >= 4, info

    return rollout(make(algorithm, envs(env_class=Both)))


@contract()
def test_infos_of_an_episodes_end(algorithm: Algorithm) -> Any:
    """``terminal_observation``, ``TimeLimit.truncated``, ``episode`` and ``is_success`` in the infos."""

    def ends(callback: Any) -> list[Any]:
        infos = [info for info in callback.locals["infos"] if "terminal_observation" in info]
        return [
            [info["terminal_observation"], info["TimeLimit.truncated"], info["episode"]["r"], info["is_success"]]
            for info in infos
        ]

    return looks(algorithm, ends)


@contract()
def test_episodes_go_on_in_the_next_rollout(algorithm: Algorithm) -> Any:
    """The first observations of a second rollout are the last ones of the first."""
    model = make(algorithm, n_steps=16)
    pairs: list[Any] = []
    model.learn(32, _ends(pairs))
    model.learn(32, _ends(pairs), reset_num_timesteps=False)
    (_, last, dones), (first, *_), *_ = pairs
    return np.array_equal(last, first), dones.dtype == bool


def _ends(pairs: list[Any]) -> Looking:
    return Looking(
        rollout_end=lambda it: pairs.append(
            (it.model.rollout_buffer.observations[0].copy(), it.locals["new_obs"].copy(), it.locals["dones"].copy())
        )
    )


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Acrobot-v1"])
@contract()
def test_environment_by_its_id(algorithm: Algorithm, env: str) -> Any:
    """A registered id."""
    model = make(algorithm, env)
    found = rollout(model)
    return {name: found[name][:10] for name in ("observations", "actions", "values", "episode_starts")}, model.n_envs


WRAPPED: dict[str, Callable[[], Any]] = {
    "bare": Cut,
    "time limit": lambda: TimeLimit(Cut(), 7),
    "monitor": lambda: Monitor(TimeLimit(Cut(), 7)),
    "dummy": lambda: DummyVecEnv([lambda: TimeLimit(Cut(), 7)] * 2),
}


@pytest.mark.parametrize("name", WRAPPED)
@contract()
def test_environment_instance(algorithm: Algorithm, name: str) -> Any:
    """An instance, which SB3 wraps in Monitor and DummyVecEnv where it needs to."""
    model = make(algorithm, WRAPPED[name]())
    found = rollout(model)
    return found, model.n_envs, len(model.ep_info_buffer) > 0, model.get_env().env_is_wrapped(Monitor)


@contract()
def test_normalisation_is_found(algorithm: Algorithm) -> Any:
    """``get_vec_normalize_env``, and its statistics after a rollout."""
    model = make(algorithm, VecNormalize(envs()))
    counts = learn(model, rollout_end=lambda callback: float(callback.model.get_vec_normalize_env().obs_rms.count))
    assert unwrap_vec_normalize(model.get_env()) is model.get_vec_normalize_env()
    return counts


@contract()
def test_original_observations_and_rewards(algorithm: Algorithm) -> Any:
    """``get_original_obs`` and ``get_original_reward`` in `_on_step`."""

    def originals(callback: Any) -> list[Any]:
        normalize = callback.model.get_vec_normalize_env()
        return [normalize.get_original_obs(), normalize.get_original_reward()]

    return looks(algorithm, originals, env=VecNormalize(envs()))


@contract()
def test_set_env(algorithm: Algorithm) -> Any:
    """``set_env``: other environments of the same number; learning begins with their reset."""
    model = make(algorithm)
    learn(model)
    other = VecNormalize(envs())
    model.set_env(other)
    model.set_random_seed(1)
    return model.get_env() is other, rollout(model)["observations"].shape, other.obs_rms.count > 60


@contract()
def test_other_number_of_environments_is_refused(algorithm: Algorithm) -> Any:
    """``set_env`` with another number of environments."""
    with pytest.raises(AssertionError, match="number of environments"):
        make(algorithm).set_env(envs(n_envs=3))
    return True


@contract()
def test_other_spaces_are_refused(algorithm: Algorithm) -> Any:
    """``set_env`` with other spaces."""
    with pytest.raises(ValueError, match="spaces do not match"):
        make(algorithm).set_env(envs("discrete"))
    return True


@contract()
def test_no_environment(algorithm: Algorithm) -> Any:
    """``env=None`` with ``_init_setup_model=False``, as ``load`` does it."""
    model = algorithm("MlpPolicy", None, _init_setup_model=False)
    return model.get_env(), hasattr(model, "policy") and model.policy is not None


@contract(without=TRIED)
def test_errors_of_an_environment_come_out(algorithm: Algorithm) -> Any:
    """What ``step`` raises is what ``learn`` raises; the rows before are in the buffer, and learning can begin anew."""
    broken = [True]

    class Breaks(Episodes):
        def step(self, action: Any) -> Any:
            if broken[0] and self.steps == 3:
                raise ZeroDivisionError("boom")
            return super().step(action)

    model = make(algorithm, envs(env_class=Breaks))
    with pytest.raises(ZeroDivisionError, match="boom"):
        learn(model)
    buffer = model.rollout_buffer
    rows = [buffer.pos, *(getattr(buffer, name)[:3].copy() for name in ("observations", "values", "log_probs"))]
    broken[0] = False
    learn(model)
    return rows, model._n_updates


@contract(without={VineTRPO: MORE_STEPS})
def test_environments_get_as_many_steps(algorithm: Algorithm) -> Any:
    """Steps and resets that the environments see."""
    counts = {"step": 0, "reset": 0}

    class Counting(Episodes):
        def step(self, action: Any) -> Any:
            counts["step"] += 1
            return super().step(action)

        def reset(self, **kwargs: Any) -> Any:
            counts["reset"] += 1
            return super().reset(**kwargs)

    learn(make(algorithm, envs(env_class=Counting)), 2)
    return counts


@contract(without=TRIED)
def test_actions_that_environments_get(algorithm: Algorithm) -> Any:
    """Clipped, of the space's shape and of floating point."""
    seen: list[Any] = []

    class Seeing(Episodes):
        def step(self, action: Any) -> Any:
            seen.append(np.array(action))
            return super().step(action)

    rollout(make(algorithm, envs(env_class=Seeing)))
    return seen
