"""Every argument that can't be used is refused at once, by a single error that says which, what it is and what it may be."""

import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO
from sb3_trpo_plus.algorithms.arguments import (
    COUNT,
    FROM_0_TO_1,
    POSITIVE,
    check_names,
    check_parameters,
    checked,
    names_of,
    or_none,
    scheduled,
)
from tests.conftest import parameters_of, random_env

FAMILY: list[Any] = [TRPO, NPG, PPOPenalty, VineTRPO]
NAN, INF = math.nan, math.inf

NO_FRACTIONS = ["5", 2.5, NAN, INF, True, None, [3], np.float32(2.5), np.array([1, 2])]
NO_NUMBERS = [NAN, INF, -INF, "0.5", None, True, [0.5], 1j, np.float32("nan"), np.array([0.5, 0.5]), 10**400]
BAD: dict[str, list[Any]] = {
    "policy": [3, None, dict, "NoPolicy"],
    "env": [3, None, [], random_env],
    "learning_rate": [*NO_NUMBERS, -1e-3, lambda _: NAN, lambda _: INF, lambda _: -1.0, lambda _: "x", lambda _: None],
    "n_steps": [*NO_FRACTIONS, 0, -1],
    "batch_size": [*NO_FRACTIONS, 0, -1],
    "n_epochs": [*NO_FRACTIONS, 0, -1],
    "gamma": [*NO_NUMBERS, -0.1, 1.1, lambda _: 2.0, lambda _: NAN],
    "gae_lambda": [*NO_NUMBERS, -1, 2, lambda _: 0.9],
    "cg_max_steps": [*NO_FRACTIONS, 0],
    "cg_damping": [*NO_NUMBERS, -0.1],
    "cg_residual_tol": [*NO_NUMBERS, -1e-6],
    "line_search_shrinking_factor": [*NO_NUMBERS, 0, 1, 1.5],
    "line_search_max_iter": [*NO_FRACTIONS, 0],
    "n_critic_updates": [*NO_FRACTIONS, -1],
    "target_kl": [*NO_NUMBERS, 0, -0.01, lambda _: -0.01, lambda _: INF],
    "ent_coef": [*NO_NUMBERS, -0.01, lambda _: -0.01],
    "step_size": [one for one in NO_NUMBERS if one is not None] + [0, -1],
    "penalty": ["clip", None, 1],
    "penalty_coef": [*NO_NUMBERS, -1],
    "dual_learning_rate": [*NO_NUMBERS, 0],
    "max_grad_norm": [*NO_NUMBERS, 0],
    "fisher": ["exact", None, 0],
    "kl_constraint": ["median", None],
    "proposal": ["greedy", None],
    "sub_sampling_factor": [*NO_FRACTIONS, 0],
    "fisher_sub_sampling_factor": [*NO_FRACTIONS, 0],
    "n_rollout_states": [*NO_FRACTIONS, 0],
    "n_actions": [one for one in NO_FRACTIONS if one is not None] + [0],
    "rollout_length": [one for one in NO_FRACTIONS if one is not None] + [0],
    "on_nonfinite": ["ignore", 1, True, ["skip"]],
    "normalize_advantage": ["yes", None, 2, NAN],
    "log_improvement_bound": ["yes", None, 2],
    "bootstrap": ["yes", None, 2],
    "use_sde": ["yes", None, 2],
    "sde_sample_freq": [*NO_FRACTIONS, -2],
    "rollout_buffer_class": ["RolloutBuffer", 3],
    "rollout_buffer_kwargs": [3, ["a"], {1: 2}],
    "stats_window_size": [*NO_FRACTIONS, 0, -1],
    "tensorboard_log": [3, b"logs", ["logs"], True],
    "policy_kwargs": [3, "net_arch", ["net_arch"], {1: 2}],
    "verbose": ["1", None, 1.5, NAN],
    "seed": [-1, 2**32, 10**30, 1.5, "0", NAN, True, [0]],
    "device": ["gpu", "cpu:x", "", 1.5, None, []],
}  # fmt: skip
CASES = [
    pytest.param(member, name, value, id=f"{member.__name__}-{name}-{index}")
    for member in FAMILY
    for name, values in BAD.items()
    if name in inspect.signature(member).parameters
    for index, value in enumerate(values)
]


def make(member: Any, **arguments: Any) -> Any:
    settings = {"policy": "MlpPolicy", "env": random_env(), "n_steps": 32, "batch_size": 32, "seed": 0, "device": "cpu"}
    if member is VineTRPO:
        settings.update(n_rollout_states=8, rollout_length=3)
    return member(**{**settings, **arguments})


@pytest.mark.parametrize(("member", "name", "value"), CASES)
def test_bad_argument_is_named_with_its_value_and_what_it_may_be(member: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"^\w+") as error:
        make(member, **{name: value})
    words = str(error.value)
    if isinstance(value, str) and value == "NoPolicy":
        assert words == "Policy NoPolicy unknown", "SB3's own"
        return
    named = (
        f"{name} at progress_remaining=1 must be "
        if callable(value) and name not in ("env", "policy", "gae_lambda")
        else f"{name} must be "
    )
    assert words.startswith(named)
    assert "but it is " in words
    assert len(words) < 300
    assert "\n" not in words


def test_every_argument_of_every_member_is_in_the_table() -> None:
    of_members = {name for member in FAMILY for name in inspect.signature(member).parameters} - {"_init_setup_model"}
    assert of_members == BAD.keys()
    assert len(CASES) >= 109


NUMBERS: dict[str, Any] = {
    "learning_rate": 1e-3, "n_steps": 32, "batch_size": 16, "gamma": 0.5, "gae_lambda": 0.5, "cg_max_steps": 3,
    "cg_damping": 0.5, "cg_residual_tol": 0.25, "line_search_shrinking_factor": 0.5, "line_search_max_iter": 3,
    "n_critic_updates": 2, "n_epochs": 2, "target_kl": 0.03125, "ent_coef": 0.125, "penalty_coef": 0.5,
    "dual_learning_rate": 0.5, "max_grad_norm": 0.5, "sub_sampling_factor": 2, "fisher_sub_sampling_factor": 2,
    "n_rollout_states": 4, "n_actions": 2, "rollout_length": 3, "stats_window_size": 10, "seed": 3, "verbose": 0,
    "sde_sample_freq": -1, "normalize_advantage": True, "log_improvement_bound": False, "use_sde": False,
}  # fmt: skip


def in_numpy(value: Any, way: str) -> Any:
    if isinstance(value, bool):
        return np.bool_(value)
    if way == "array":
        return np.array(value)
    if way == "torch":
        return th.tensor(value)
    if isinstance(value, int):
        return np.int64(value) if way == "wide" else np.int32(value)
    return np.float64(value) if way == "wide" else np.float32(value)


@pytest.mark.parametrize("way", ["wide", "narrow", "array", "torch"])
@pytest.mark.parametrize("member", FAMILY)
def test_numpys_scalars_are_pythons_numbers(member: Any, way: str, tmp_path: Path) -> None:
    """Through learn, save and load, with the same parameters as Python's numbers; the file holds them as JSON."""
    own = {name: value for name, value in NUMBERS.items() if name in inspect.signature(member).parameters}
    rate = 1e-3 if way in ("wide", "array") else float(np.float32(1e-3))
    plain = make(member, **{**own, "learning_rate": rate}).learn(32)
    given = make(member, **{name: in_numpy(value, way) for name, value in own.items()}).learn(np.int64(32))
    assert all(th.equal(value, parameters_of(plain)[name]) for name, value in parameters_of(given).items())
    given.save(tmp_path / "model.zip")
    loaded = member.load(tmp_path / "model.zip", env=random_env())
    for name in own:
        attribute = "_stats_window_size" if name == "stats_window_size" else name
        for model in (given, loaded):
            value = getattr(model, attribute)
            assert type(value) in (bool, int, float), name
            assert json.loads(json.dumps(value)) == value
    loaded.learn(32)


def test_numbers_that_stand_for_others_are_taken() -> None:
    """What SB3 has always taken: whole numbers for floats, 0 and 1 for flags, a constant rate of 0, Path and True."""
    model = make(TRPO, gamma=1, gae_lambda=1, target_kl=1, normalize_advantage=1, learning_rate=0, verbose=False)
    assert (model.gamma, model.gae_lambda, model.learning_rate) == (1, 1, 0)
    assert make(TRPO, tensorboard_log=Path("logs")).tensorboard_log == Path("logs")
    assert make(TRPO, policy=ActorCriticPolicy, rollout_buffer_class=RolloutBuffer, seed=2**32 - 1).seed == 2**32 - 1


def test_argument_is_refused_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ActorCriticPolicy, "__init__", lambda *args, **kwargs: pytest.fail("a network was built"))
    with pytest.raises(ValueError, match="gae_lambda must be"):
        make(TRPO, gae_lambda=2)


class NoCallback(BaseCallback):
    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("member", FAMILY)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("total_timesteps", value) for value in (NAN, -1, "1000", None, True, [10], -INF)),
        *(("log_interval", value) for value in (0, "1", NAN, True)),
        *(("callback", value) for value in (3, "callback", (NoCallback(),), [NoCallback(), 3], NoCallback, {"a": 1})),
        ("tb_log_name", 3), ("reset_num_timesteps", "no"), ("progress_bar", "yes"), ("reset_num_timesteps", None),
    ],
)  # fmt: skip
def test_bad_argument_of_learn_is_refused_before_anything_is_done(member: Any, name: str, value: Any) -> None:
    model = make(member)
    before = parameters_of(model)
    arguments = {"total_timesteps": 64, name: value}
    with pytest.raises(TypeError if name == "callback" else ValueError, match=rf"^{name} must be .*, but it is "):
        model.learn(**arguments)
    assert model.num_timesteps == 0
    assert model._last_obs is None
    assert all(th.equal(value, before[name]) for name, value in parameters_of(model).items())


def test_arguments_of_learn_that_have_always_worked() -> None:
    model = make(TRPO)
    for callback in (None, NoCallback(), [NoCallback(), NoCallback()], CallbackList([]), lambda local, globals_: True):
        assert model.learn(32.0, callback, log_interval=-1).num_timesteps == 32
    assert model.learn(0, log_interval=None).num_timesteps == 0
    assert model.learn(INF, lambda local, globals_: model.num_timesteps < 10).num_timesteps == 10


@pytest.mark.parametrize("member", FAMILY)
@pytest.mark.parametrize("broken", [NAN, INF])
def test_parameters_that_are_not_finite_are_not_taken(member: Any, broken: float) -> None:
    """Nor is any other of the same call."""
    model = make(member).learn(32)
    given = make(member, seed=1).learn(32).get_parameters()
    given["policy"]["value_net.bias"][0] = broken
    before, optimizer = parameters_of(model), str(model.policy.optimizer.state_dict())
    with pytest.raises(ValueError, match=r"policy\.value_net\.bias has 1 NaN or infinite elements of 1"):
        model.set_parameters(given)
    assert all(th.equal(value, before[name]) for name, value in parameters_of(model).items())
    assert str(model.policy.optimizer.state_dict()) == optimizer


def test_state_of_an_optimiser_that_is_not_finite_is_not_taken() -> None:
    model = make(TRPO).learn(32)
    given = model.get_parameters()
    index = next(iter(given["policy.optimizer"]["state"]))
    given["policy.optimizer"]["state"][index] = {"step": th.tensor(1.0), "exp_avg": th.tensor([NAN, 1.0])}
    with pytest.raises(ValueError, match=rf"policy\.optimizer\.state\.{index}\.exp_avg has 1 NaN or infinite elements of 2"):
        check_parameters(given)


@pytest.mark.parametrize("spoil", ["shape", "missing", "unknown"])
def test_parameters_of_another_model_leave_this_one_as_it_was(spoil: str, tmp_path: Path) -> None:
    """SB3 takes those that fit before it finds the one that does not."""
    model = make(TRPO).learn(32)
    other = make(TRPO, seed=1, policy_kwargs={"net_arch": [64, 63]} if spoil == "shape" else {})
    given = other.get_parameters()
    if spoil == "missing":
        del given["policy"]["value_net.bias"]
    elif spoil == "unknown":
        given["nothing"] = {}
    before, optimizer = parameters_of(model), str(model.policy.optimizer.state_dict())
    with pytest.raises((ValueError, RuntimeError), match=r"size mismatch|value_net\.bias|Key nothing"):
        model.set_parameters(given)
    assert all(th.equal(value, before[name]) for name, value in parameters_of(model).items())
    assert str(model.policy.optimizer.state_dict()) == optimizer


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("gama", "gamma"), ("batchsize", "batch_size"), ("lambda", "gae_lambda"), ("targetkl", "target_kl"), ("zzz", None)],
)
def test_misspelt_name_is_refused_with_the_nearest(given: str, nearest: str | None) -> None:
    words = f"TRPO.load() got an unexpected keyword argument {given!r}"
    words += f". Did you mean {nearest!r}?" if nearest else ""
    with pytest.raises(TypeError, match=f"^{re.escape(words)}$"):
        check_names(["gamma", given], names_of(TRPO), "TRPO.load()")


def test_names_that_there_are_pass() -> None:
    class Mine(TRPO):
        def __init__(self, *args: Any, mine: int = 0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    assert {"mine", "gamma", "line_search_max_iter", "seed", "ent_coef"} <= names_of(Mine)
    assert not {"self", "args", "kwargs"} & names_of(Mine)
    check_names(["mine", "gamma"], names_of(Mine), "Mine.load()")


def test_schedules_may_return_what_becomes_a_number() -> None:
    for value in (0.5, np.float32(0.5), np.array(0.5), np.array([0.5]), th.tensor(0.5), th.tensor([0.5])):
        assert scheduled("gamma", lambda _, value=value: value, 1.0, FROM_0_TO_1) == 0.5
    assert scheduled("gamma", 0.5, 1.0, FROM_0_TO_1) == 0.5


@pytest.mark.parametrize(("value", "expected"), [(np.int8(3), 3), (np.longdouble(0.5), 0.5), (th.tensor(2), 2), (None, None)])
def test_checked_value_is_pythons(value: Any, expected: Any) -> None:
    found = checked("x", value, or_none(POSITIVE))
    assert found == expected
    assert type(found) is type(expected)


def test_long_value_is_cut_short() -> None:
    with pytest.raises(ValueError, match="x must be an integer of at least 1, but it is") as error:
        checked("x", list(range(10_000)), COUNT)
    assert len(str(error.value)) < 100


@pytest.mark.parametrize("name", ["learning_rate", "target_kl", "gamma", "ent_coef"])
def test_rl_zoos_word_for_a_schedule_is_told_pythons(name: str) -> None:
    words = rf"^{name} must be .*, or a function of the remaining progress.*LinearSchedule\(0.*, but it is 'lin_0\.001'$"
    with pytest.raises(ValueError, match=words):
        make(TRPO, **{name: "lin_0.001"})
