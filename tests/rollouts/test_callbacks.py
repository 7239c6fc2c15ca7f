"""The local variables that callbacks get, as the dict that they are in SB3; and which callbacks leave a rollout alone."""

import builtins
import collections
import copy
import json
import operator
import pickle
import pprint
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common import callbacks as of_sb3
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo_plus import TrainingCheckpoint
from sb3_trpo_plus.rollouts.callbacks import KNOWN, LAZY, Locals, family, runs_known_code_alone
from tests.conftest import random_env
from tests.rollouts.conftest import make

GIVEN = {"self": 1, "n_steps": 2, "rewards": 3}
EVERYTHING = {**GIVEN, "obs_tensor": "o", "values": "v", "log_probs": "l"}


class Source:
    """Counts what is computed."""

    def __init__(self, suffix: str = "") -> None:
        self.suffix, self.computed = suffix, collections.Counter[str]()

    def _compute(self, name: str) -> str:
        self.computed[name] += 1
        return name[0] + self.suffix

    @property
    def obs_tensor(self) -> str:
        return self._compute("obs_tensor")

    @property
    def values(self) -> str:
        return self._compute("values")

    @property
    def log_probs(self) -> str:
        return self._compute("log_probs")


def shown() -> tuple[Locals, Source]:
    local, source = Locals({"self": 1}), Source()
    local.show(source, n_steps=2, rewards=3)
    return local, source


def _sorted(items: Any) -> Any:
    return sorted(map(str, items))


def _deleted(local: Any) -> Any:
    del local["values"]
    return dict(local)


def _popped(local: Any) -> Any:
    return local.pop("values"), local.pop("values", "gone"), dict(local)


def _pop_items(local: Any) -> Any:
    return _sorted([local.popitem() for _ in range(len(local))]), len(local)


def _set(local: Any) -> Any:
    local["values"] = 7
    return local["values"], local.get("values"), dict(local)


def _updated(local: Any) -> Any:
    local.update({"values": 7, "new": 8}, newer=9)
    return dict(local)


def _updated_in_place(local: Any) -> Any:
    local |= {"log_probs": 7}
    return dict(local)


def _cleared(local: Any) -> Any:
    local.clear()
    return dict(local), "values" in local, len(local)


def _merged_into(local: Any) -> Any:
    other = {"other": 0}
    other.update(local)
    another = {"other": 0}
    another |= local
    return other, another


def _matched(local: Any) -> Any:
    match local:
        case {"values": values, "n_steps": steps}:
            return values, steps
    return None


def _missing(local: Any) -> Any:
    with pytest.raises(KeyError, match="nothing"):
        local["nothing"]
    return local.get("nothing"), local.get("nothing", 5), "nothing" in local


def _iterated(local: Any) -> Any:
    return sorted(local), sorted(iter(local)), sorted([*reversed(local)]), sorted([*local])


def _evaluated(local: Any) -> Any:
    return builtins.eval("(values, rewards)", {}, local)


def _by_format(local: Any) -> Any:
    return "{values} {rewards}".format_map(local), "%(log_probs)s" % local  # noqa: UP031


READS: dict[str, Callable[[Any], Any]] = {
    "item": lambda local: [local[name] for name in EVERYTHING],
    "get": lambda local: [local.get(name) for name in EVERYTHING],
    "itemgetter": lambda local: operator.itemgetter(*EVERYTHING)(local),
    "contains": lambda local: [name in local for name in EVERYTHING],
    "keys": lambda local: (sorted(local.keys()), "values" in local.keys(), local.keys() >= {"values"}),  # noqa: SIM118
    "values": lambda local: _sorted(local.values()),
    "items": lambda local: _sorted(local.items()),
    "comprehension": lambda local: {name: value for name, value in local.items()},  # noqa: C416
    "iteration": _iterated,
    "dict": dict,
    "dict with more": lambda local: dict(local, more=1),
    "unpacked": lambda local: {**local},
    "keyword arguments": lambda local: (lambda **kwargs: kwargs)(**local),
    "copy": lambda local: local.copy(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickled": lambda local: [pickle.loads(pickle.dumps(local, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)],
    "deep within": lambda local: copy.deepcopy([{"it": local}]),
    "length": len,
    "bool": bool,
    "equal": lambda local: (local == EVERYTHING, local != EVERYTHING, EVERYTHING == local),  # noqa: SIM300
    "unequal": lambda local: (local == {}, local != {}, {} == local),  # noqa: SIM300
    "union": lambda local: (local | {"x": 1}, {"x": 1} | local, local | local),
    "union in place": _updated_in_place,
    "merged into another": _merged_into,
    "repr": lambda local: builtins.eval(repr(local)) == EVERYTHING,
    "pprint": lambda local: builtins.eval(pprint.pformat(dict(local))),
    "json": lambda local: json.loads(json.dumps(local)),
    "match": _matched,
    "eval": _evaluated,
    "format": _by_format,
    "proxy": lambda local: (dict(types.MappingProxyType(local)), types.MappingProxyType(local)["values"]),
    "chain": lambda local: (dict(collections.ChainMap({}, local)), collections.ChainMap(local)["values"]),
    "isinstance": lambda local: (isinstance(local, dict), isinstance(local, collections.abc.MutableMapping)),
    "missing": _missing,
    "set": _set,
    "setdefault": lambda local: (local.setdefault("values", 7), local.setdefault("new", 8), dict(local)),
    "del": _deleted,
    "pop": _popped,
    "popitem": _pop_items,
    "update": _updated,
    "clear": _cleared,
    "fromkeys": lambda local: dict.fromkeys(local, 0),
    "zip": lambda local: sorted(zip(local, local.values(), strict=True)),
}


@pytest.mark.parametrize("how", READS)
def test_locals_are_a_dict_in_every_way_that_a_dict_is_used(how: str) -> None:
    local, source = shown()
    expected = READS[how](dict(EVERYTHING))
    assert READS[how](local) == expected
    assert all(times == 1 for times in source.computed.values()), "nothing is computed twice"


@pytest.mark.parametrize(
    "read",
    [
        lambda local: None,
        lambda local: [local[name] for name in GIVEN],
        lambda local: [local.get(name) for name in GIVEN],
        lambda local: [name in local for name in EVERYTHING],
        lambda local: local.update(local),
        lambda local: local.update({"n_steps": 4}),
        lambda local: operator.setitem(local, "rewards", 4),
        lambda local: local.get("nothing"),
        lambda local: local.show(Source(), n_steps=3),
    ],
)
def test_nothing_is_computed_that_is_not_read(read: Callable[[Locals], Any]) -> None:
    local, source = shown()
    read(local)
    assert not source.computed


@pytest.mark.parametrize("name", LAZY)
def test_only_what_is_read_is_computed_and_that_once(name: str) -> None:
    local, source = shown()
    assert local[name] is local[name] is local.get(name)
    assert source.computed == {name: 1}


def test_each_step_has_its_own() -> None:
    local, first = shown()
    assert local["values"] == "v"
    second = Source("2")
    local.show(second, n_steps=3)
    assert (local["n_steps"], local["rewards"]) == (3, 3)
    assert not second.computed
    assert (local["values"], local["log_probs"]) == ("v2", "l2")
    assert first.computed == {"values": 1}


def test_settled_locals_know_their_source_no_more() -> None:
    local, source = shown()
    kept = local["values"]
    local.settle()
    assert local.source is None
    assert dict(local) == EVERYTHING
    assert local["values"] is kept
    local.settle()
    assert source.computed == dict.fromkeys(LAZY, 1)
    del local["values"]
    assert "values" not in local


@pytest.mark.parametrize(
    "copied", [dict, copy.copy, copy.deepcopy, Locals.copy, lambda local: pickle.loads(pickle.dumps(local))]
)
def test_copies_are_plain_dicts_of_their_step(copied: Callable[[Locals], Any]) -> None:
    local, _ = shown()
    twin = copied(local)
    local.show(Source("2"), n_steps=3, rewards=4)
    assert type(twin) is dict
    assert twin == EVERYTHING
    twin["values"] = 0
    assert local["values"] == "v2"


class Nothing(BaseCallback):
    def _on_step(self) -> bool:
        return True


def started(callback: BaseCallback) -> BaseCallback:
    callback.init_callback(make())
    callback.on_training_start({"total_timesteps": 5}, {})
    return callback


def test_family_shares_one() -> None:
    child, grandchild = Nothing(), Nothing()
    everybody = started(of_sb3.CallbackList([child, of_sb3.EveryNTimesteps(5, grandchild)]))
    local = Locals.shared_by(everybody)
    assert local == {"total_timesteps": 5}
    assert everybody.locals is child.locals is grandchild.locals is local
    assert Locals.shared_by(everybody) is local
    source = Source()
    local.show(source, n_steps=1)
    # SB3's callbacks update what they have with what they are given.
    everybody.update_locals(local)
    assert not source.computed
    assert child.locals["values"] == "v"


def test_callback_with_locals_of_its_own_keeps_them() -> None:
    child, stranger = Nothing(), Nothing()
    everybody = started(of_sb3.CallbackList([child, stranger]))
    own = stranger.locals = {"its": "own"}
    local = Locals.shared_by(everybody)
    local.show(Source(), n_steps=1)
    everybody.update_locals(local)
    assert child.locals is local
    assert stranger.locals is own
    assert own == {"its": "own", "total_timesteps": 5, "n_steps": 1, "obs_tensor": "o", "values": "v", "log_probs": "l"}


def test_family_is_all_that_is_called() -> None:
    leaves = [Nothing() for _ in range(4)]
    tree = of_sb3.CallbackList(
        [
            leaves[0],
            of_sb3.EveryNTimesteps(5, of_sb3.CallbackList([leaves[1]])),
            of_sb3.EvalCallback(random_env(), callback_on_new_best=leaves[2], callback_after_eval=leaves[3]),
        ]
    )
    assert {id(leaf) for leaf in leaves} <= {id(one) for one in family(tree)}
    assert list(family(None)) == []


def stop_after(n: int) -> BaseCallback:
    return of_sb3.StopTrainingOnMaxEpisodes(n)


KNOWN_ONES: dict[str, Callable[[], BaseCallback]] = {
    "CallbackList": lambda: of_sb3.CallbackList([]),
    "CheckpointCallback": lambda: of_sb3.CheckpointCallback(5, "/tmp"),
    "ConvertCallback": lambda: of_sb3.ConvertCallback(None),
    "EvalCallback": lambda: of_sb3.EvalCallback(random_env()),
    "EveryNTimesteps": lambda: of_sb3.EveryNTimesteps(5, stop_after(1)),
    "LogEveryNTimesteps": lambda: of_sb3.LogEveryNTimesteps(5),
    "ProgressBarCallback": of_sb3.ProgressBarCallback,
    "StopTrainingOnMaxEpisodes": lambda: stop_after(1),
    "StopTrainingOnNoModelImprovement": lambda: of_sb3.StopTrainingOnNoModelImprovement(1),
    "StopTrainingOnRewardThreshold": lambda: of_sb3.StopTrainingOnRewardThreshold(1.0),
    "TrainingCheckpoint": lambda: TrainingCheckpoint("/tmp/never"),
}


def test_every_known_callback_has_an_example() -> None:
    assert KNOWN_ONES.keys() == {kind.__name__ for kind in KNOWN}


@pytest.mark.parametrize("name", KNOWN_ONES)
def test_callbacks_of_sb3_leave_a_rollout_alone(name: str) -> None:
    callback = KNOWN_ONES[name]()
    assert type(callback).__name__ == name
    assert runs_known_code_alone(callback)
    assert runs_known_code_alone(of_sb3.CallbackList([callback, stop_after(3)]))


@pytest.mark.parametrize("name", KNOWN_ONES)
def test_what_is_made_of_them_may_do_anything(name: str) -> None:
    callback = KNOWN_ONES[name]()
    callback.__class__ = type("Mine", (type(callback),), {})
    assert not runs_known_code_alone(callback)


@pytest.mark.parametrize("method", ["_on_step", "on_step", "update_locals"])
@pytest.mark.parametrize("name", KNOWN_ONES)
def test_patched_ones_may_do_anything(name: str, method: str) -> None:
    callback = KNOWN_ONES[name]()
    setattr(callback, method, lambda *args: True)
    assert not runs_known_code_alone(callback)


@pytest.mark.parametrize(
    "callback",
    [
        Nothing,
        lambda: of_sb3.ConvertCallback(lambda local, of_module: True),
        lambda: of_sb3.CallbackList([stop_after(1), Nothing()]),
        lambda: of_sb3.CallbackList([of_sb3.CallbackList([Nothing()])]),
        lambda: of_sb3.EveryNTimesteps(5, Nothing()),
        lambda: of_sb3.EvalCallback(random_env(), callback_on_new_best=Nothing()),
        lambda: of_sb3.EvalCallback(random_env(), callback_after_eval=Nothing()),
        lambda: of_sb3.EvalCallback(random_env(), deterministic=False),
    ],
)
def test_users_code_is_found_wherever_it_is_called_from(callback: Callable[[], BaseCallback]) -> None:
    assert not runs_known_code_alone(callback())


def test_rl_zoos_callbacks_leave_a_rollout_alone() -> None:
    from rl_zoo3.callbacks import RawStatisticsCallback, SaveVecNormalizeCallback

    assert runs_known_code_alone(SaveVecNormalizeCallback(5, "/tmp"))
    assert runs_known_code_alone(RawStatisticsCallback())
    namesake = type("RawStatisticsCallback", (Nothing,), {})
    assert not runs_known_code_alone(namesake())


@pytest.mark.parametrize("name", ["box", "discrete"])
def test_known_callbacks_change_nothing_of_a_rollout(name: str) -> None:
    """Neither what is collected nor what the generator draws, although the noise is drawn in advance."""
    contents = []
    for callback in (stop_after(10**6), Nothing()):
        model = make(name)
        th.manual_seed(1)
        model.learn(120, callback)
        contents.append((model.rollout_buffer.actions.copy(), th.rand(2).numpy()))
    for one, other in zip(*contents, strict=True):
        np.testing.assert_array_equal(one, other)
