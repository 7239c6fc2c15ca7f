"""Schedules and spaces of the years when Gymnasium was Gym."""

import pickle
from typing import Any

import cloudpickle
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common import utils

from sb3_trpo_plus.files.rebuild import rebuilt


def linear_schedule(initial_value: float) -> Any:
    """RL Zoo's closure of that name."""

    def func(progress_remaining: float) -> float:
        return progress_remaining * initial_value

    func.__module__ = "rl_zoo3.utils"
    return func


def by_value(function: Any) -> bytes:
    """The function as cloudpickle writes one that can't be imported: bytecode, closure and all."""
    return cloudpickle.dumps(function)


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize(
    "make_schedule",
    [
        lambda: utils.constant_fn(3e-4),
        lambda: utils.get_linear_fn(1e-3, 1e-5, 0.7),
        lambda: utils.get_schedule_fn(2e-4),
        lambda: utils.get_schedule_fn(utils.get_linear_fn(1e-3, 1e-5, 0.7)),
        lambda: linear_schedule(1e-3),
    ],
)
def test_former_closures_of_schedules_become_schedule_objects(make_schedule: Any) -> None:
    function = make_schedule()
    translated = rebuilt(by_value(function))
    assert type(translated) in (utils.ConstantSchedule, utils.LinearSchedule)
    for progress in np.linspace(0, 1, 11):
        assert translated(progress) == pytest.approx(function(progress), rel=1e-12)


GYM_SPACES = [
    spaces.Box(-1, np.array([1, 2, 3], dtype=np.float32)),
    spaces.Discrete(7),
    spaces.MultiDiscrete([3, 4]),
    spaces.MultiBinary(5),
    spaces.Dict({"a": spaces.Box(0, 255, (3, 8, 8), np.uint8), "b": spaces.Discrete(2)}),
    spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(3)]),
]


@pytest.mark.parametrize("space", GYM_SPACES, ids=str)
def test_spaces_of_gym_become_gymnasiums(space: spaces.Space[Any]) -> None:
    """Protocol 3 writes class names as lines of text, so the same pickle with Gym's names can be made of it."""
    pickled = pickle.dumps(space, protocol=3).replace(b"cgymnasium.", b"cgym.")
    assert b"cgym.spaces" in pickled
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(pickled)
    again = rebuilt(pickled)
    assert again == space
    assert type(again) is type(space)
