"""Attributes are brought up to date by whoever reads, copies or pickles them, and by nobody else."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo_plus.rollouts.lazy import filled_when_read
from tests.rollouts.conftest import make


class Thing:
    """Top-level, so that it can be pickled."""

    def __init__(self) -> None:
        self.late: list[int] = []
        self.other = [5]


def fill(thing: Thing) -> Callable[[], None]:
    return lambda: vars(thing).update(late=[1, 2])


READS: dict[str, Callable[[Any], Any]] = {
    "read": lambda thing: thing.late,
    "getattr": lambda thing: getattr(thing, "late"),  # noqa: B009
    "copied": lambda thing: copy.copy(thing).late,
    "copied deeply": lambda thing: copy.deepcopy(thing).late,
    "pickled": lambda thing: pickle.loads(pickle.dumps(thing)).late,
    "pickled by the first protocol": lambda thing: pickle.loads(pickle.dumps(thing, protocol=0)).late,
    "copied among others": lambda thing: copy.deepcopy({"it": [thing]})["it"][0].late,
}


@pytest.mark.parametrize("how", READS)
def test_attribute_is_filled_when_it_is_read(how: str) -> None:
    thing = Thing()
    take_back = filled_when_read(thing, ("late",), fill(thing))
    assert thing.other == [5]
    assert vars(thing)["late"] == [], "nobody has read it"
    assert READS[how](thing) == [1, 2]
    take_back()
    assert type(thing) is Thing


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_copies_are_of_the_original_class_and_filled_no_more(copied: Callable[[Any], Any]) -> None:
    thing = Thing()
    filled_when_read(thing, ("late",), fill(thing))
    twin = copied(thing)
    assert type(twin) is Thing
    assert vars(twin) == {"late": [1, 2], "other": [5]}
    twin.late = [3]
    assert twin.late == [3]
    assert thing.late == [1, 2]


def test_attribute_can_be_written_and_its_object_seems_to_be_of_its_class() -> None:
    thing = Thing()
    take_back = filled_when_read(thing, ("late", "missing"), lambda: None)
    thing.late = [7]
    assert thing.late == [7]
    thing.other = [8]
    assert isinstance(thing, Thing)
    assert (type(thing).__name__, type(thing).__module__) == ("Thing", Thing.__module__)
    assert not hasattr(thing, "missing"), "what the object has not got is not made up"
    take_back()
    assert vars(thing) == {"late": [7], "other": [8]}


def test_buffer_fills_itself_by_its_own_methods() -> None:
    """``get`` and the advantages read what is filled, wherever it is called from."""
    model = make()
    buffer = model.rollout_buffer
    calls: list[int] = []

    def values() -> None:
        calls.append(1)
        vars(buffer)["values"][:] = 2.0

    take_back = filled_when_read(buffer, ("values",), values)
    assert isinstance(buffer, RolloutBuffer)
    buffer.rewards[:] = 1.0
    assert not calls
    buffer.compute_returns_and_advantage(th.zeros(3), np.zeros(3))
    assert calls
    np.testing.assert_allclose(buffer.returns, buffer.advantages + 2.0)
    take_back()
    assert type(buffer) is RolloutBuffer
