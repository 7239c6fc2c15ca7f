"""``Infos`` beside a plain list of the same dicts, whatever is done with both."""

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_trpo_plus.envs.vec.infos import Info, Infos

INDICES = st.integers(-6, 6)
SLICES = st.builds(slice, st.none() | INDICES, st.none() | INDICES, st.none() | INDICES.filter(bool))
DICTS = st.dictionaries(st.sampled_from("ab"), st.integers(0, 3), max_size=2)
LISTS = st.lists(DICTS, max_size=3)


def others(index: int) -> Info:
    return {"index": index}


@st.composite
def pairs(draw: Any) -> tuple[Infos, list[Info]]:
    """Infos, some of which were read already, and the list that they stand for."""
    n_envs = draw(st.integers(0, 5))
    told = {index: {"told": index} for index in range(n_envs) if draw(st.booleans())}
    infos = Infos(n_envs, told, others)
    for index in range(n_envs):
        if draw(st.booleans()):
            assert infos[index] is infos[index]
    return infos, [{"told": index} if index in told else {"index": index} for index in range(n_envs)]


READ: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "item": (lambda a, i: a[i], (INDICES,)),
    "numpy's index": (lambda a, i: a[np.int64(i)], (INDICES,)),
    "slice": (lambda a, s: a[s], (SLICES,)),
    "list": (list, ()),
    "tuple": (tuple, ()),
    "unpacked": (lambda a: [*a], ()),
    "arguments": (lambda a: (lambda *args: args)(*a), ()),
    "first and rest": (lambda a: (lambda first, *rest: (first, rest))(*a), ()),
    "enumerated": (lambda a: list(enumerate(a)), ()),
    "reversed": (lambda a: list(reversed(a)), ()),
    "length": (len, ()),
    "truth": (bool, ()),
    "repr": (repr, ()),
    "str": (str, ()),
    "json": (json.dumps, ()),
    "json with indent": (lambda a: json.dumps(a, indent=1), ()),
    "array": (lambda a: np.array(a, dtype=object).tolist(), ()),
    "copied": (copy.copy, ()),
    "copied by its method": (lambda a: a.copy(), ()),
    "copied deeply": (copy.deepcopy, ()),
    "pickled": (lambda a: pickle.loads(pickle.dumps(a)), ()),
    "plus a list": (lambda a, b: a + b, (LISTS,)),
    "a list plus it": (lambda a, b: b + a, (LISTS,)),
    "times": (lambda a, n: a * n, (st.integers(-1, 2),)),
    "times it": (lambda a, n: n * a, (st.integers(-1, 2),)),
    "sorted": (lambda a: sorted(a, key=str), ()),
    "greatest": (lambda a: max(a, key=str), ()),
    "contains": (lambda a, d: d in a, (DICTS | st.integers(0, 5).map(others),)),
    "count": (lambda a, d: a.count(d), (DICTS | st.integers(0, 5).map(others),)),
    "index": (lambda a, d: a.index(d), (DICTS | st.integers(0, 5).map(others),)),
    "equal": (lambda a, b: a == b, (LISTS,)),
    "equal the other way": (lambda a, b: b == a, (LISTS,)),
    "unequal": (lambda a, b: a != b, (LISTS,)),
    "extended by it": (lambda a, b: [*b, *a], (LISTS,)),
    "put into a slice": (lambda a, b: put_into(b, a), (LISTS,)),
}
CHANGE: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "set": (lambda a, i, d: a.__setitem__(i, d), (INDICES, DICTS)),
    "set to None": (lambda a, i: a.__setitem__(i, None), (INDICES,)),
    "set a slice": (lambda a, s, b: a.__setitem__(s, b), (SLICES, LISTS)),
    "delete": (lambda a, i: a.__delitem__(i), (INDICES,)),
    "delete a slice": (lambda a, s: a.__delitem__(s), (SLICES,)),
    "append": (lambda a, d: a.append(d), (DICTS,)),
    "insert": (lambda a, i, d: a.insert(i, d), (INDICES, DICTS)),
    "extend": (lambda a, b: a.extend(b), (LISTS,)),
    "add": (lambda a, b: a.__iadd__(b) is a, (LISTS,)),
    "multiply": (lambda a, n: a.__imul__(n) is a, (st.integers(-1, 2),)),
    "pop": (lambda a: a.pop(), ()),
    "pop at": (lambda a, i: a.pop(i), (INDICES,)),
    "remove": (lambda a, d: a.remove(d), (DICTS | st.integers(0, 5).map(others),)),
    "reverse": (lambda a: a.reverse(), ()),
    "sort": (lambda a: a.sort(key=str), ()),
    "clear": (lambda a: a.clear(), ()),
}


def put_into(target: list[Any], infos: list[Info]) -> list[Any]:
    target[1:2] = infos
    return target


def outcome(operation: Callable[..., Any], *args: Any) -> Any:
    """What it returns, or the error's type and words."""
    try:
        return operation(*args)
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        return type(error), str(error)


@pytest.mark.parametrize("name", READ)
@settings(max_examples=30)
@given(data=st.data(), pair=pairs())
def test_reading(name: str, data: Any, pair: tuple[Infos, list[Info]]) -> None:
    infos, plain = pair
    operation, strategies = READ[name]
    args = [data.draw(strategy) for strategy in strategies]
    expected = outcome(operation, plain, *copy.deepcopy(args))
    got = outcome(operation, infos, *copy.deepcopy(args))
    assert got == expected
    # A list by all that asks for its type, and Infos by nothing that is a copy.
    assert type(got) is type(expected)
    assert list(infos) == plain


@pytest.mark.parametrize("name", CHANGE)
@settings(max_examples=30)
@given(data=st.data(), pair=pairs())
def test_changing(name: str, data: Any, pair: tuple[Infos, list[Info]]) -> None:
    infos, plain = pair
    before = copy.deepcopy(plain)
    operation, strategies = CHANGE[name]
    args = [data.draw(strategy) for strategy in strategies]
    expected = outcome(operation, plain, *copy.deepcopy(args))
    assert outcome(operation, infos, *copy.deepcopy(args)) == expected
    assert infos == plain
    assert list(infos) == plain
    # Who looks at what is told alone misses nothing that was put there.
    assert all(infos[index] is info for index, info in infos.told.items())
    assert all(info in before for index, info in enumerate(infos) if index not in infos.told)


def test_dicts_are_made_when_they_are_read_and_once() -> None:
    made: list[int] = []

    def make(index: int) -> Info:
        made.append(index)
        return {"index": index}

    infos = Infos(4, {1: {"told": 1}}, make)
    assert len(infos) == 4
    assert infos.told == {1: {"told": 1}}
    assert infos[1] == {"told": 1}
    assert made == []
    infos[-1]["mine"] = True
    assert infos[3] == {"index": 3, "mine": True}
    assert made == [3]
    assert list(infos) == [{"index": 0}, {"told": 1}, {"index": 2}, {"index": 3, "mine": True}]
    assert next(iter(infos)) is infos[0]
    assert made == [3, 0, 2]


def test_without_others_they_are_empty() -> None:
    infos = Infos(3, {2: {"a": 1}})
    assert list(infos) == [{}, {}, {"a": 1}]
    assert isinstance(infos, list)
