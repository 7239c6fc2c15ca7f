"""Packed infos come back as they were, in type and to the bit."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sb3_trpo_plus.envs.vec.packing import pack, unpack
from tests.envs.vec.same import same

NUMBERS = st.floats(width=64).map(np.float64)
VALUES = st.one_of(
    NUMBERS,
    st.floats(),
    st.integers(),
    st.booleans(),
    st.none(),
    st.text("ab", max_size=3),
    st.binary(max_size=16),
    st.floats(width=32).map(np.float32),
    st.integers(0, 9).map(np.int64),
    st.lists(NUMBERS, max_size=3).map(np.array),
)
INFOS = st.one_of(
    st.fixed_dictionaries({"one": NUMBERS, "TimeLimit.truncated": st.booleans(), "other": VALUES}),
    st.dictionaries(st.text("ab", max_size=2), VALUES, max_size=3),
)


@given(st.dictionaries(st.integers(0, 20), INFOS, max_size=6))
def test_infos_come_back(infos: dict[int, dict[str, Any]]) -> None:
    found = unpack(pack(infos))
    assert same(list(found.items()), list(infos.items()))


@given(st.dictionaries(st.integers(0, 20), st.fixed_dictionaries({"b": NUMBERS, "a": NUMBERS, "c": VALUES}), min_size=1))
def test_infos_of_one_kind_come_back(infos: dict[int, dict[str, Any]]) -> None:
    found = unpack(pack(infos))
    assert same(list(found.items()), list(infos.items()))


def test_the_dicts_are_those_of_one_environment_each() -> None:
    found = unpack(pack({2: {"a": np.float64(1.0)}, 5: {"a": np.float64(2.0)}}))
    found[2]["a"] = None
    assert found == {2: {"a": None}, 5: {"a": 2.0}}
