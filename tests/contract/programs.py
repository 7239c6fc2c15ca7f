"""
The contract as programs: each runs with ``sb3_contrib.TRPO`` and with the members of the family, and must give the same.

A program takes the class of the algorithm and returns plain results. :func:`contract` makes a test of it for each member.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO
from tests.conftest import ACTION_SPACES, RandomEnv

Algorithm = type[Any]
FAMILY: tuple[Algorithm, ...] = (TRPO, NPG, PPOPenalty, VineTRPO)
FIELDS = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")

# Why a member is left out of a case.
OTHER_STEP = "its step is no natural gradient"
OTHER_SAMPLE = "its update is made from the branches, not from the rollout buffer"
NO_CRITIC = "it has no critic to fit unless bootstrap=True"
MORE_STEPS = "the steps of its branches count too, so a learn() of as many steps has fewer rollouts"
NOT_DIRECTION = {PPOPenalty: OTHER_STEP, VineTRPO: OTHER_SAMPLE}


@dataclass(frozen=True)
class Raises:
    """What sb3-contrib does where it does not keep the promise: an error of this kind, whose text has these words."""

    kind: type[Exception]
    words: str = ""


@dataclass(frozen=True)
class Promise:
    """
    What the table of the contract says of a case.

    :param kept_by_contrib: whether sb3-contrib does as SB3's documentation says
    :param without: members that are left out, and why
    """

    kept_by_contrib: bool
    without: tuple[tuple[Algorithm, str], ...]


def assert_same(ours: Any, theirs: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Of the same types, shapes, keys and numbers; subclasses are let through, and arrays' dtypes must be equal."""
    if isinstance(theirs, th.Tensor):
        assert isinstance(ours, th.Tensor)
        th.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
    elif isinstance(theirs, np.ndarray):
        assert isinstance(ours, np.ndarray)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if theirs.dtype == object:
            assert_same(ours.tolist(), theirs.tolist(), rtol, atol)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)
    elif isinstance(theirs, dict):
        assert set(ours) == set(theirs)
        for key, value in theirs.items():
            assert_same(ours[key], value, rtol, atol)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other, rtol, atol)
    elif isinstance(theirs, (float, np.floating)):
        assert isinstance(ours, (float, np.floating))
        assert ours == pytest.approx(theirs, rel=rtol, abs=atol, nan_ok=True)
    else:
        assert ours == theirs


def assert_at_least(ours: Any, theirs: Any) -> None:
    """Sets: all that sb3-contrib has, and perhaps more. Numbers: as many, and perhaps more."""
    missing = set(theirs) - set(ours) if isinstance(theirs, (set, frozenset)) else None
    assert ours >= theirs, missing


def assert_same_direction(ours: Any, theirs: Any) -> None:
    """Unit vectors that differ by less than one per cent."""
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) < 0.01


@functools.cache
def reference(program: Callable[..., Any], **parameters: Any) -> Any:
    """What the program gives with sb3-contrib's class; an exception is a result, too."""
    try:
        return program(sb3_contrib.TRPO, **parameters)
    except Exception as error:
        return error


def contract(
    *,
    without: Mapping[Algorithm, str] | None = None,
    compare: Callable[[Any, Any], None] = assert_same,
    documented: Any = None,
    contrib: Any = None,
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """
    Make a program a test, which each member of the family has to pass.

    :param without: members that are left out, and why
    :param compare: asserts that the first result will do for one who is used to the second
    :param documented: what the documentation promises, where sb3-contrib does something else
    :param contrib: what that is, which is asserted too: a result, or :class:`Raises`
    :return: decorator
    """
    members = [pytest.param(member, id=member.__name__) for member in FAMILY if member not in (without or {})]

    def decorate(program: Callable[..., Any]) -> Callable[..., None]:
        @pytest.mark.parametrize("algorithm", members)
        @functools.wraps(program)
        def test(algorithm: Algorithm, **parameters: Any) -> None:
            theirs = reference(program, **parameters)
            if isinstance(contrib, Raises):
                assert isinstance(theirs, contrib.kind), theirs
                assert contrib.words in str(theirs)
            elif isinstance(theirs, Exception):
                raise theirs
            elif contrib is not None:
                assert_same(theirs, contrib)
            compare(program(algorithm, **parameters), theirs if contrib is None else documented)

        test.__dict__["promise"] = Promise(contrib is None, tuple((without or {}).items()))
        return test

    return decorate


class Episodes(RandomEnv):
    """Random observations; episodes that end, one of twenty at each step, and that are cut off after eight."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _, info = super().step(action)
        terminated, truncated = bool(self.np_random.random() < 0.05), self.steps >= 8
        success = {"is_success": reward > 0} if terminated or truncated else {}
        return observation, reward, terminated, truncated, {**info, **success}


def envs(
    action_space: str | spaces.Space[Any] = "box",
    observation_space: spaces.Space[Any] | None = None,
    n_envs: int = 2,
    env_class: Callable[[Any, Any], Any] = Episodes,
    **kwargs: Any,
) -> VecEnv:
    """Environments of these spaces, with SB3's Monitor."""
    acted = ACTION_SPACES[action_space] if isinstance(action_space, str) else action_space
    observed = spaces.Box(-2.0, 2.0, (4,)) if observation_space is None else observation_space
    return make_vec_env(lambda: env_class(copy.deepcopy(observed), copy.deepcopy(acted)), n_envs, seed=0, **kwargs)


def settings(algorithm: Algorithm, **kwargs: Any) -> dict[str, Any]:
    """Arguments of an algorithm that keep it quick, and those given."""
    quick: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_critic_updates": 2, "seed": 0, "device": "cpu"}
    if issubclass(algorithm, VineTRPO):
        quick |= {"n_rollout_states": 4, "n_actions": 2, "rollout_length": 4}
    if issubclass(algorithm, PPOPenalty):
        quick |= {"n_epochs": 2}
    return {**quick, "policy_kwargs": {"net_arch": [8]}, **kwargs}


def make(algorithm: Algorithm, env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> Any:
    """A small model."""
    return algorithm(policy, envs() if env is None else env, **settings(algorithm, **kwargs))


class Looking(BaseCallback):
    """
    Calls functions with itself, and keeps what they return.

    The vine's steps on branches, which SB3 has not, are left out.
    """

    def __init__(self, **functions: Callable[["Looking"], Any]) -> None:
        super().__init__()
        self.functions, self.seen, self.step = functions, list[Any](), 0

    def _look(self, name: str) -> None:
        if name in self.functions:
            self.seen.append(self.functions[name](self))

    def _on_training_start(self) -> None:
        self._look("training_start")

    def _on_rollout_start(self) -> None:
        self._look("rollout_start")

    def _on_step(self) -> bool:
        if not self.locals.get("branching"):
            self.step += 1
            self._look("step")
        return True

    def _on_rollout_end(self) -> None:
        self._look("rollout_end")

    def _on_training_end(self) -> None:
        self._look("training_end")


def learn(model: Any, n_rollouts: int = 1, **functions: Callable[[Looking], Any]) -> list[Any]:
    """
    Learn for some rollouts.

    :param n_rollouts: for the vine one, since one with its branches has more steps
    :param functions: to be called in the callback's methods of these names without ``_on_``
    :return: what they returned
    """
    callback = Looking(**functions)
    model.learn(n_rollouts * model.n_steps * model.n_envs, callback)
    return callback.seen


def looks(algorithm: Algorithm, function: Callable[[Looking], Any], when: str = "step", **kwargs: Any) -> list[Any]:
    """What a function of the callback returns during one rollout of a small model."""
    return learn(make(algorithm, **kwargs), **{when: function})


def contents(buffer: Any, fields: tuple[str, ...] = FIELDS) -> dict[str, Any]:
    """Copies of a buffer's arrays."""
    return {name: copy.deepcopy(getattr(buffer, name)) for name in fields}


def rollout(model: Any, **functions: Callable[[Looking], Any]) -> dict[str, Any]:
    """The buffer's contents at the end of a rollout; without the update, which is other cases'."""
    found: dict[str, Any] = {}
    model.train = lambda: None
    try:
        learn(model, rollout_end=lambda callback: found.update(contents(callback.model.rollout_buffer)), **functions)
    finally:
        del model.train
    return found


def flat_parameters(model: Any) -> Any:
    """All parameters of the policy, one after the other."""
    return np.concatenate([p.detach().double().numpy().flatten() for p in model.policy.parameters()])


def direction(model: Any) -> Any:
    """Of the first update's step, of length one. The model must have n_critic_updates=0, so that only the actor moves."""
    before = flat_parameters(model)
    learn(model)
    step = flat_parameters(model) - before
    return step / np.linalg.norm(step)


def moved(model: Any) -> dict[str, bool]:
    """Which parameters one rollout and its update move; all must stay finite."""
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    learn(model)
    assert all(bool(p.isfinite().all()) for p in model.policy.parameters())
    return {name: not th.equal(before[name], p) for name, p in model.policy.named_parameters()}


def of_actor(moves: dict[str, bool]) -> dict[str, bool]:
    """Of what :func:`moved` returns, the part that the update of the policy moves."""
    return {name: moves[name] for name in moves if "value" not in name and "pi_" not in name and "vf_" not in name}
