"""``GymnasiumVecEnv`` beside ``DummyVecEnv`` and the vector environments themselves. SB3's contract: tests/contract."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers import vector as wrappers
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.envs.vec import GymnasiumVecEnv, make_gymnasium_vec
from sb3_trpo_plus.states import Restorable, check_restorable, get_vec_state
from tests.contract.vec_envs import assert_equal
from tests.envs.vec.cart_poles import steps_as_alone

MODES = list(AutoresetMode)
RESETTING = [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]


class Informing(gym.Env[Any, Any]):
    """Its infos have values of every kind, some now and then."""

    observation_space = spaces.Dict({"at": spaces.Discrete(9), "place": spaces.Box(-1.0, 1.0, (2,))})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {"of reset": self.np_random.random(), "nested": {"again": 1.5}}

    def observe(self) -> dict[str, Any]:
        return {"at": self.np_random.integers(9), "place": self.np_random.random(2).astype(np.float32)}

    def step(self, action: int) -> Any:
        self.time += 1
        draw = self.np_random.random()
        info = {
            "array": self.np_random.random(3),
            "word": f"step {self.time}",
            "_private": draw,
            "_of": self.time,
            "yes": True,
        }
        if draw < 0.5:
            info["now and then"] = self.time
            info["nested"] = {"deep": {"deeper": draw}, "list": [self.time]}
        return self.observe(), draw, draw > 0.8, self.time == 6, info


def pair(mode: AutoresetMode, make: Callable[[], gym.Env[Any, Any]], **kwargs: Any) -> tuple[VecEnv, VecEnv]:
    """A DummyVecEnv and a GymnasiumVecEnv of three of the same environments, with the same seeds."""
    theirs = DummyVecEnv([lambda: Monitor(make())] * 3)
    ours = GymnasiumVecEnv(SyncVectorEnv([make] * 3, autoreset_mode=mode, **kwargs))
    for env in (theirs, ours):
        env.seed(7)
    return theirs, ours


def compare_infos(infos: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Of a step; the order of keys is nobody's."""
    for info, other in zip(infos, others, strict=True):
        assert_equal(dict(sorted(info.items())), dict(sorted(other.items())))


def compare(theirs: VecEnv, ours: VecEnv, n_steps: int) -> int:
    """Check that both return the same, to the bit; how many episodes ended."""
    ended = 0
    assert_equal(ours.reset(), theirs.reset())
    compare_infos(ours.reset_infos, theirs.reset_infos)
    ours.action_space.seed(0)
    for _ in range(n_steps):
        actions = np.stack([ours.action_space.sample() for _ in range(ours.num_envs)])
        *got, infos = ours.step(actions)
        *expected, their_infos = theirs.step(actions)
        assert_equal(got, expected)
        for info in (*infos, *their_infos):
            info.get("episode", {}).pop("t", None)
        compare_infos(infos, their_infos)
        compare_infos(ours.reset_infos, theirs.reset_infos)
        ended += int(got[-1].sum())
    return ended


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("copies", [True, False])
def test_a_sync_vector_env_is_as_a_dummy_vec_env(mode: AutoresetMode, copies: bool) -> None:
    """All that is returned, infos and reset infos of every kind of value among it; seeds are those of SB3."""
    assert compare(*pair(mode, Informing, copy=copies), 60) > 10


@pytest.mark.parametrize("mode", MODES)
def test_time_limits(mode: AutoresetMode) -> None:
    make = partial(gym.make, "CartPole-v1", max_episode_steps=15)
    theirs, ours = pair(mode, make)
    assert compare(theirs, ours, 80) > 10


def test_the_same_model_is_learned_as_with_a_dummy_vec_env() -> None:
    def learned(env: VecEnv) -> TRPO:
        return TRPO("MlpPolicy", env, n_steps=64, batch_size=64, seed=3).learn(256)

    model = learned(make_vec_env("CartPole-v1", 2))
    ours = learned(make_gymnasium_vec("CartPole-v1", 2, vectorization_mode="sync"))
    for one, other in zip(ours.policy.parameters(), model.policy.parameters(), strict=True):
        assert th.equal(one, other)
    for one, other in zip(ours.ep_info_buffer, model.ep_info_buffer, strict=True):
        assert (one["r"], one["l"]) == (other["r"], other["l"])
    assert evaluate_policy(ours, ours.get_env(), 3, warn=True)[0] > 0


@pytest.mark.parametrize("mode", MODES)
def test_sb3s_wrappers_on_top(mode: AutoresetMode) -> None:
    theirs, ours = pair(mode, partial(gym.make, "Pendulum-v1", max_episode_steps=7))
    assert compare(VecNormalize(theirs), VecNormalize(ours), 30) == 3 * 4
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        monitored = VecMonitor(ours)
    bare = VecMonitor(GymnasiumVecEnv(sync(mode), monitor=False))
    for env in (monitored, bare):
        env.reset()
        ended = [info for _ in range(40) for info in env.step(np.zeros((env.num_envs, *env.action_space.shape), int))[3]]
        assert [info["episode"]["l"] for info in ended if "episode" in info]


# Gymnasium's own vector environment of CartPole.


def cart_poles(n_envs: int, **kwargs: Any) -> GymnasiumVecEnv:
    return make_gymnasium_vec("CartPole-v1", n_envs, seed=1, env_kwargs=kwargs)


@pytest.mark.parametrize("limit", [12, 500])
def test_cart_poles_obey_the_dynamics_of_cart_pole(limit: int) -> None:
    """A step is that of the environment alone from the last observation, the first after a reset and the last among them."""
    env, cut = cart_poles(16, max_episode_steps=limit), 0
    assert type(env.venv.unwrapped) is CartPoleVectorEnv
    actions = np.random.default_rng(0).integers(0, 2, (80, 16))
    for after, rewards, _, infos in steps_as_alone(env, actions, limit, 1e-6):
        assert after.dtype == rewards.dtype == np.float32
        cut += sum(info["TimeLimit.truncated"] for info in infos)
    assert (cut > 0) == (limit == 12)


def test_a_cart_pole_begins_its_episodes_as_it_would_have_itself() -> None:
    ours, itself = cart_poles(1), gym.make_vec("CartPole-v1", 1, "vector_entry_point")
    firsts, its_firsts = [ours.reset()[0]], [itself.reset(seed=1)[0][0]]
    ended = False
    for _ in range(100):
        observations, _, dones, _ = ours.step(np.ones(1, int))
        firsts += [observations[0]] if dones[0] else []
        its, _, terminated, truncated, _ = itself.step(np.ones(1, int))
        its_firsts += [its[0]] if ended else []
        ended = bool(terminated[0] or truncated[0])
    n = len(its_firsts)
    assert n > 5
    np.testing.assert_array_equal(firsts[:n], its_firsts)


def test_first_observations_of_cart_poles_are_uniform_within_the_bounds_of_the_last_reset() -> None:
    env = cart_poles(64)
    env.set_options({"low": -0.2, "high": 0.1})
    firsts = [env.reset()]
    for _ in range(200):
        observations, _, dones, _ = env.step(np.ones(64, int))
        firsts.append(observations[dones])
    drawn = np.concatenate(firsts[1:])
    assert drawn.min() >= np.float32(-0.2)
    assert drawn.max() <= np.float32(0.1)
    # Kolmogorov and Smirnov: this far from the uniform distribution once in a million times.
    for column in drawn.T:
        distance = np.abs(np.sort(column) - np.linspace(-0.2, 0.1, len(column))).max() / 0.3
        assert distance < 2.7 / np.sqrt(len(column)) + 1 / len(column)
    env.reset()  # options are for one reset, and the next has its own bounds
    observations, dones = env.reset(), np.zeros(64, bool)
    while not dones.any():
        observations, _, dones, _ = env.step(np.ones(64, int))
    assert np.abs(observations[dones]).max() <= 0.05


def test_seeds_of_cart_poles() -> None:
    def played(seed: int) -> list[Any]:
        env = cart_poles(4)
        env.seed(seed)
        return [env.reset(), *(env.step(np.ones(4, int))[0] for _ in range(30))]

    assert_equal(played(5), played(5))
    assert not np.array_equal(played(5)[0], played(6)[0])
    env = cart_poles(4)
    assert not np.array_equal(env.reset(), env.reset())


# Vector environments of one's own.


class Counters(VectorEnv[Any, Any, Any]):
    """
    Its observations count the steps of an episode, in arrays that are used again.

    :param mode: what it says it is
    :param heeds: whether a reset heeds the mask
    """

    def __init__(self, mode: Any, heeds: bool = True) -> None:
        self.num_envs, self.heeds = 3, heeds
        self.metadata = {"autoreset_mode": mode, "render_modes": []}
        self.single_observation_space, self.single_action_space = spaces.Box(0, 100, (1,)), spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, 3)
        self.action_space = batch_space(self.single_action_space, 3)
        self.counts, self.rewards = np.zeros((3, 1)), np.zeros(3)
        self.infos = {"count": np.zeros(3), "limits": np.array([2, 3, 5])}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.counts[options["reset_mask"] if options and self.heeds else slice(None)] = 0
        return self.counts, {}

    def step(self, actions: Any) -> Any:
        self.counts += 1
        self.rewards[:] = self.infos["count"][:] = self.counts[:, 0]
        infos, terminated = self.infos, self.counts[:, 0] == self.infos["limits"]
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and terminated.any():
            infos = {**infos, "final_obs": self.counts.copy(), "_final_obs": terminated.copy()}
            self.counts[terminated] = 0
        return self.counts, self.rewards, terminated, np.zeros(3, bool), infos


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED, "Disabled"])
def test_a_vector_env_that_uses_its_arrays_again(mode: Any) -> None:
    env = GymnasiumVecEnv(lambda: Counters(mode))
    steps = [env.reset(), *(env.step(np.zeros(3, int)) for _ in range(6))]
    assert env.env_is_wrapped(Monitor) == [True] * 3
    np.testing.assert_array_equal(steps[0], np.zeros((3, 1)))
    for time in range(1, 7):
        observations, rewards, dones, infos = steps[time]
        for index, limit in enumerate((2, 3, 5)):
            count = (time - 1) % limit + 1
            ends = count == limit
            assert (observations[index, 0], rewards[index], dones[index]) == (0 if ends else count, count, ends)
            assert infos[index]["count"] == count
            if ends:
                assert infos[index]["terminal_observation"] == [count]
                assert infos[index]["episode"]["l"] == limit
    assert observations.dtype == rewards.dtype == np.float32


def test_a_vector_env_that_only_says_that_it_heeds_the_mask() -> None:
    env = GymnasiumVecEnv(Counters(AutoresetMode.DISABLED, heeds=False))
    env.reset()
    env.step(np.zeros(3, int))
    with pytest.raises(ValueError, match=r"Counters says .*DISABLED.* leaves the others alone, but they changed"):
        env.step(np.zeros(3, int))


def test_a_vector_env_that_only_says_that_it_resets_in_the_same_step() -> None:
    counters = Counters(AutoresetMode.DISABLED)
    env = GymnasiumVecEnv(counters)
    env.reset()
    counters.metadata["autoreset_mode"] = AutoresetMode.SAME_STEP
    env = GymnasiumVecEnv(counters)
    counters.metadata["autoreset_mode"] = AutoresetMode.DISABLED
    env.step(np.zeros(3, int))
    with pytest.raises(ValueError, match=r"Counters says .*SAME_STEP.* no infos"):
        env.step(np.zeros(3, int))


class MySync(SyncVectorEnv):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)


class Remembering(VectorWrapper):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)


def sync(mode: AutoresetMode = AutoresetMode.NEXT_STEP, env_id: str = "CartPole-v1") -> SyncVectorEnv:
    return SyncVectorEnv([partial(gym.make, env_id)] * 2, autoreset_mode=mode)


def twice(observations: Any) -> Any:
    return 2 * observations


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown": (lambda: Counters(AutoresetMode.NEXT_STEP), "Counters resets an environment in the step after its end"),
    "changed": (lambda: MySync([partial(gym.make, "CartPole-v1")]), "MySync resets .* autoreset_mode=AutoresetMode.SAME_STEP"),
    "no mode": (lambda: Counters(None), 'metadata."autoreset_mode".* of a Counters .* is None'),
    "statistics": (lambda: wrappers.RecordEpisodeStatistics(sync()), "leave out the wrapper RecordEpisodeStatistics"),
    "statistics, same step": (
        lambda: wrappers.RecordEpisodeStatistics(sync(AutoresetMode.SAME_STEP)),
        "leave out the wrapper RecordEpisodeStatistics",
    ),
    "normalised": (
        lambda: wrappers.NormalizeObservation(sync()),
        "NormalizeObservation is not known to reset some .*VecNormalize",
    ),
    "rewards": (lambda: wrappers.NormalizeReward(sync()), "NormalizeReward is not known to reset some"),
    "cart pole": (lambda: Remembering(CartPoleVectorEnv(2)), "Remembering is not known to reset some"),
    "one's own": (lambda: Remembering(sync()), "Remembering is not known to reset some"),
    "lists": (lambda: wrappers.DictInfoToList(sync(AutoresetMode.SAME_STEP)), "leave out the wrapper DictInfoToList"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_go_wrong_is_refused(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        GymnasiumVecEnv(make)


def test_an_async_vector_env_that_would_reset_twice_is_refused() -> None:
    venv = AsyncVectorEnv([partial(gym.make, "CartPole-v1")], shared_memory=False)
    with pytest.raises(ValueError, match="AsyncVectorEnv resets"):
        GymnasiumVecEnv(venv)
    venv.close()


@pytest.mark.parametrize("wrong", [None, lambda: 3, "CartPole-v1"])
def test_what_is_no_vector_env(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"venv must be a gymnasium.vector.VectorEnv or make one, not (NoneType|int|str)"):
        GymnasiumVecEnv(wrong)


@pytest.mark.parametrize("make", [sync, partial(sync, AutoresetMode.DISABLED), lambda: CartPoleVectorEnv(2)])
def test_gymnasiums_wrappers_without_a_state(make: Callable[[], Any]) -> None:
    """Observations, the first and the last ones among them, and rewards are as wrapped."""
    bare = GymnasiumVecEnv(make())
    wrapped = wrappers.TransformReward(wrappers.TransformObservation(make(), twice), twice)
    ours = GymnasiumVecEnv(wrapped)
    for env in (bare, ours):
        env.seed(2)
    np.testing.assert_array_equal(ours.reset(), 2 * bare.reset())
    ended = 0
    for _ in range(40):
        expected, rewards, dones, infos = bare.step(np.ones(2, int))
        got, our_rewards, our_dones, our_infos = ours.step(np.ones(2, int))
        np.testing.assert_array_equal(got, 2 * expected)
        np.testing.assert_array_equal(our_rewards, 2 * rewards)
        np.testing.assert_array_equal(our_dones, dones)
        for index in dones.nonzero()[0]:
            ended += 1
            last, our_last = (some[index]["terminal_observation"] for some in (infos, our_infos))
            np.testing.assert_array_equal(our_last, 2 * last)
    assert ended


def test_a_wrapper_with_a_reset_of_its_own_where_gymnasium_resets() -> None:
    bare, ours = GymnasiumVecEnv(sync(AutoresetMode.SAME_STEP)), GymnasiumVecEnv(Remembering(sync(AutoresetMode.SAME_STEP)))
    for env in (bare, ours):
        env.seed(2)
    assert compare(bare, ours, 40) > 0


# Attributes, options, closing.


@pytest.fixture(params=["sync", "async"])
def two(request: Any) -> Iterator[GymnasiumVecEnv]:
    makers = [lambda: Monitor(TimeLimit(gym.make("CartPole-v1").unwrapped, 9))] * 2
    venv = SyncVectorEnv(makers) if request.param == "sync" else AsyncVectorEnv(makers, context="fork")
    env = GymnasiumVecEnv(venv)
    yield env
    env.close()
    env.close()


def test_attributes_of_environments(two: GymnasiumVecEnv) -> None:
    two.set_attr("gravity", 1.0)
    assert two.get_attr("gravity") == [1.0, 1.0]
    assert two.get_attr("gravity", 1) == [1.0]
    assert two.env_method("get_wrapper_attr", "gravity") == [1.0, 1.0]
    assert not two.has_attr("levity")
    with pytest.raises(AttributeError, match="levity"):
        two.env_method("levity")
    assert two.reset().shape == (2, 4), "the environments still answer"
    assert two.env_is_wrapped(Monitor) == [True, True]


def test_attributes_of_some_environments(two: GymnasiumVecEnv) -> None:
    if not two.leaves_interpreter_free:
        two.set_attr("gravity", 2.0, indices=[1])
        assert two.get_attr("gravity") == [9.8, 2.0]
        assert two.env_is_wrapped(TimeLimit) == [True, True]
        return
    with pytest.raises(ValueError, match=r"set_attr\('gravity'\): a AsyncVectorEnv does this for all .* \(indices=\[1\]\)"):
        two.set_attr("gravity", 2.0, indices=[1])
    with pytest.raises(ValueError, match=r"env_is_wrapped\((Patched)?TimeLimit\)"):
        two.env_is_wrapped(TimeLimit)
    assert two.get_attr("gravity") == [9.8, 9.8]


def test_attributes_of_environments_in_one() -> None:
    env = cart_poles(3)
    assert env.get_attr("render_mode") == ["rgb_array"] * 3
    assert env.get_attr("spec", [0, 2])[1].id == "CartPole-v1"
    env.set_attr("gravity", 3.0)
    assert env.venv.unwrapped.gravity == 3.0
    assert env.get_attr("gravity", 1) == [3.0]
    with pytest.raises(ValueError, match="does this for all environments"):
        env.set_attr("gravity", 2.0, indices=0)
    with pytest.raises(AttributeError, match="CartPoleVectorEnv is all environments in one, without methods of each"):
        env.env_method("reset")
    with pytest.raises(AttributeError, match="levity"):
        env.get_attr("levity")
    assert env.env_is_wrapped(TimeLimit) == [False] * 3
    env.reset()
    assert [image.shape for image in env.get_images()] == [(400, 600, 3)] * 3
    env.close()
    env.close()


def test_options_that_differ_are_refused_and_change_nothing() -> None:
    env = cart_poles(2)
    env.set_options({"low": 0.01, "high": 0.02})
    with pytest.raises(ValueError, match="set_options: the environments of a GymnasiumVecEnv are reset together"):
        env.set_options([{"low": -0.2, "high": 0.2}, {}])
    assert env.reset().min() >= np.float32(0.01)


def test_states_are_restored_where_there_are_single_environments_and_refused_elsewhere() -> None:
    check_restorable(reset(make_gymnasium_vec("CartPole-v1", 2, 0, "sync", wrapper_class=Restorable)), 40)
    for env in (cart_poles(2), GymnasiumVecEnv(SyncVectorEnv([lambda: Restorable(gym.make("CartPole-v1"))] * 2))):
        with pytest.raises(
            TypeError, match=r"A GymnasiumVecEnv gives no access .* statistics of the episodes itself, which can't be put back"
        ):
            get_vec_state(reset(env), 0)


def reset(env: GymnasiumVecEnv) -> GymnasiumVecEnv:
    env.reset()
    return env


# make_gymnasium_vec


@pytest.mark.parametrize("mode", ["vector_entry_point", "sync", "async"])
def test_making_with_files(mode: str, tmp_path: Path) -> None:
    env = make_gymnasium_vec("CartPole-v1", 2, 4, mode, monitor_dir=str(tmp_path), env_kwargs={"max_episode_steps": 5})
    env.reset()
    told = [info["episode"] for _ in range(15) for info in env.step(np.zeros(2, int))[3] if "episode" in info]
    env.close()
    read = load_results(str(tmp_path))
    assert list(zip(read.r, read.l, strict=True)) == [(one["r"], one["l"]) for one in told] == [(5, 5)] * 6


def test_making_by_default() -> None:
    """The registered vector environment, and single ones where it has not what is asked for."""

    def base(*args: Any, **kwargs: Any) -> type:
        env = make_gymnasium_vec(*args, 2, **kwargs)
        env.close()
        return type(env.venv.unwrapped)

    assert base("CartPole-v1") is CartPoleVectorEnv
    assert base("CartPole-v1", wrapper_class=lambda env: TimeLimit(env, 3)) is SyncVectorEnv
    assert base("CartPole-v1", vector_kwargs={"copy": False}) is SyncVectorEnv
    assert base("Pendulum-v1") is SyncVectorEnv
    assert base(Informing) is SyncVectorEnv


def test_making_what_can_not_be_had() -> None:
    with pytest.raises(ValueError, match="can't be had with wrapper_class"):
        make_gymnasium_vec("CartPole-v1", vectorization_mode="vector_entry_point", wrapper_class=Monitor)
    with pytest.raises(ValueError, match="can't be had with a function"):
        make_gymnasium_vec(Informing, vectorization_mode="vector_entry_point")
    with pytest.raises(ValueError, match=r"vectorization_mode must be .* not 'threads'"):
        make_gymnasium_vec("CartPole-v1", vectorization_mode="threads")


def test_importing_brings_nothing_that_is_not_asked_for() -> None:
    code = "import sys, sb3_trpo_plus.envs.vec as vec; vec.make_envpool_vec; assert 'EnvPoolVecEnv' in dir(vec)"
    code += "; assert not {'envpool', 'sb3_trpo_plus.envs.vec.gymnasium'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
