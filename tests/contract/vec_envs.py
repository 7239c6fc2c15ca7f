"""Every VecEnv of SB3 and of this package over the same environments, in which what a step returns is known in advance."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_trpo_plus.envs.vec import GymnasiumVecEnv, WorkerVecEnv

Env = gym.Env[Any, Any]
Makers = Sequence[Callable[[], Env]]
Open = Callable[..., VecEnv]
ACTION = spaces.Box(-10.0, 10.0, (), np.float32)


@dataclass(frozen=True)
class Ending:
    """
    How an episode ends.

    :param step: its last one
    """

    step: int
    terminated: bool
    truncated: bool


TERMINATED, TRUNCATED, BOTH, AT_ONCE, CUT_AT_ONCE = (
    Ending(3, True, False), Ending(4, False, True), Ending(2, True, True), Ending(1, True, False), Ending(1, False, True)
)  # fmt: skip
# Of each environment, one episode after the other, and again from the first.
ENDINGS = (
    (TERMINATED, TRUNCATED, BOTH),
    (TRUNCATED,),
    (AT_ONCE, TERMINATED, CUT_AT_ONCE, AT_ONCE),
    (BOTH, TRUNCATED, TERMINATED),
    (Ending(7, False, True),),
)


def element(space: spaces.Space[Any], number: int) -> Any:
    """What stands for a number in a space."""
    if isinstance(space, spaces.Dict):
        return {key: element(part, number + index) for index, (key, part) in enumerate(space.spaces.items())}
    if isinstance(space, spaces.Tuple):
        return tuple(element(part, number + index) for index, part in enumerate(space.spaces))
    if isinstance(space, spaces.Discrete):
        return space.start + space.dtype.type(number % space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return (number + np.arange(len(space.nvec))).astype(space.dtype) % space.nvec
    if isinstance(space, spaces.MultiBinary):
        return (number >> np.arange(space.n) & 1).astype(space.dtype)
    assert isinstance(space, spaces.Box)
    return (number + 0.125 * np.arange(np.prod(space.shape))).reshape(space.shape).astype(space.dtype)


class Counting(Env):
    """
    Its observation stands for the number of the step, its reward is the action's sum, and its episodes end as it is told.

    :param endings: of its episodes, from the first one again after the last
    :param observation_space: of which :func:`element` makes the observations
    :param action_space: any of the spaces that SB3's algorithms act in
    :param reuses: whether it writes all observations into one array, as simulators do
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        endings: Sequence[Ending] = (TERMINATED,),
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] = ACTION,
        reuses: bool = False,
    ) -> None:
        self.observation_space = observation_space or spaces.Box(-1.0, 100.0, (2,), np.float32)
        self.action_space = action_space
        self.render_mode = "rgb_array"
        self.endings = itertools.cycle(endings)
        self.same = element(self.observation_space, 0) if reuses else None
        self.goal = 0.0
        self.episodes = 0

    def observe(self) -> Any:
        observation = element(self.observation_space, self.steps)
        if self.same is None:
            return observation
        self.same[...] = observation
        return self.same

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.ending = 0, next(self.endings)
        self.episodes += 1
        said = {"seed": -1 if seed is None else seed, "goal": (options or {}).get("goal", -1), "draw": self.np_random.random()}
        return self.observe(), said

    def step(self, action: Any) -> Any:
        self.steps += 1
        if np.sum(action) == 7:
            raise ZeroDivisionError("boom")
        ends = self.steps == self.ending.step
        told = {"step": self.steps, "kind": type(action).__name__}
        return self.observe(), float(np.sum(action)), ends and self.ending.terminated, ends and self.ending.truncated, told

    def render(self) -> Any:
        return np.full((4, 4, 3), 10 * self.steps, np.uint8)

    def where(self, factor: int, plus: int = 0) -> int:
        """The step, in another unit."""
        return factor * self.steps + plus


def counting(endings: Sequence[Sequence[Ending]] = ENDINGS, monitored: bool = True, **kwargs: Any) -> Makers:
    """Makers of an environment for each sequence of endings."""

    def maker(own: Sequence[Ending]) -> Callable[[], Env]:
        def make() -> Env:
            return Monitor(Counting(own, **kwargs)) if monitored else Counting(own, **kwargs)

        return make

    return [maker(own) for own in endings]


@dataclass(frozen=True)
class Row:
    """What a step has to return for an environment."""

    observed: int
    reward: float
    done: bool
    last: int | None
    cut: bool
    episode: tuple[float, int] | None


def played(endings: Sequence[Ending], rewards: Sequence[float]) -> list[Row]:
    """
    What an environment has to return, step by step, by SB3's contract.

    :param endings: of its episodes
    :param rewards: of the steps
    """
    rows, coming, step, total = [], itertools.cycle(endings), 0, 0.0
    ending = next(coming)
    for reward in rewards:
        step, total = step + 1, total + reward
        if step < ending.step:
            rows.append(Row(step, reward, False, None, False, None))
        else:
            rows.append(Row(0, reward, True, step, ending.truncated and not ending.terminated, (total, step)))
            ending, step, total = next(coming), 0, 0.0
    return rows


@dataclass(frozen=True)
class Kind:
    """
    A VecEnv over environments that Python makes.

    :param make: it, of the makers of its environments
    :param ours: whether it is of this package, and float32 rewards and a list of infos are promised
    :param lacks: by a word of the tests, why it can't do a thing
    """

    make: Callable[[Makers], VecEnv]
    ours: bool = True
    lacks: dict[str, str] = field(default_factory=dict)


def _gymnasium(kind: Callable[..., Any], mode: AutoresetMode, **kwargs: Any) -> Callable[[Makers], VecEnv]:
    # Those in which Gymnasium resets take the episodes of Monitor, the others make them themselves.
    monitor = mode is not AutoresetMode.SAME_STEP
    return lambda makers: GymnasiumVecEnv(kind(makers, autoreset_mode=mode, **kwargs), monitor)


RESET_BEFORE_COPY = {"reused arrays": "Gymnasium resets in the same step, and copies after that"}
TOGETHER = {"options of each": "Gymnasium's reset has the same options for all"}
ASYNC = {**TOGETHER, "some attributes": "an AsyncVectorEnv sets and calls all or none"}
KINDS: dict[str, Kind] = {
    "dummy": Kind(DummyVecEnv, ours=False),  # type: ignore[arg-type]
    "subproc": Kind(
        lambda makers: SubprocVecEnv(list(makers), start_method="fork"),
        ours=False,
        lacks={
            "exceptions": "its process ends, and the caller gets an EOFError, or waits for ever if processes are forked",
            "second step_async": "each of its pipes then has an answer too many, and every later step is one behind",
            "rewards of float32": "they are float64's",
        },
    ),
    "workers": Kind(lambda makers: WorkerVecEnv(makers, n_workers=2, start_method="fork", timeout=30)),
    "sync, next step": Kind(_gymnasium(SyncVectorEnv, AutoresetMode.NEXT_STEP), lacks=TOGETHER),
    "sync, same step": Kind(_gymnasium(SyncVectorEnv, AutoresetMode.SAME_STEP), lacks={**TOGETHER, **RESET_BEFORE_COPY}),
    "sync, disabled": Kind(_gymnasium(SyncVectorEnv, AutoresetMode.DISABLED), lacks=TOGETHER),
    "async, same step": Kind(
        _gymnasium(AsyncVectorEnv, AutoresetMode.SAME_STEP, context="fork"), lacks={**ASYNC, **RESET_BEFORE_COPY}
    ),
    "async, disabled": Kind(_gymnasium(AsyncVectorEnv, AutoresetMode.DISABLED, context="fork"), lacks=ASYNC),
}


def kinds(*without: str) -> Any:
    """A test for each VecEnv, but for those that lack one of these."""
    some = [name for name, kind in KINDS.items() if not kind.lacks.keys() & set(without)]
    return pytest.mark.parametrize("kind", some)


def parts_of(observations: Any) -> Iterator[np.ndarray]:
    """The arrays in observations of any kind."""
    if isinstance(observations, dict):
        yield from observations.values()
    elif isinstance(observations, tuple):
        yield from observations
    else:
        yield observations


def one_of(observations: Any, index: int) -> Any:
    """The observation of an environment."""
    if isinstance(observations, dict):
        return {key: value[index, ...] for key, value in observations.items()}
    if isinstance(observations, tuple):
        return tuple(value[index, ...] for value in observations)
    return observations[index, ...]


def assert_equal(one: Any, other: Any) -> None:
    """To the bit: types of containers, dtypes, shapes, numbers."""
    if isinstance(other, dict):
        assert isinstance(one, dict)
        assert list(one) == list(other)
        for key in other:
            assert_equal(one[key], other[key])
    elif isinstance(other, (tuple, list)):
        assert type(one) is type(other)
        for part, other_part in zip(one, other, strict=True):
            assert_equal(part, other_part)
    else:
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)


def actions_of(env: VecEnv, n_steps: int, seed: int = 0) -> list[np.ndarray]:
    """Actions at random for all environments; for :class:`Counting`'s own space integers, whose sums are exact."""
    if env.action_space == ACTION:
        return list(np.random.default_rng(seed).integers(-5, 6, (n_steps, env.num_envs)).astype(np.float32))
    env.action_space.seed(seed)
    return [np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(n_steps)]
