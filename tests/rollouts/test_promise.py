"""Promises are what they stand for."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_trpo_plus.rollouts.promise import Promise

TENSOR = th.tensor([[3.0], [-1.0]])
USES: dict[str, Callable[[Any], Any]] = {
    "method": lambda x: x.cpu().numpy(),
    "attribute": lambda x: x.shape,
    "item": lambda x: x[1],
    "float": lambda x: float(x[0]),
    "operator": lambda x: 2 * x - x / 3 + x @ x.t(),
    "comparison": lambda x: x > 0,
    "equality": lambda x: x == x,
    "negative": lambda x: -x,
    "length": len,
    "iteration": list,
    "numpy": np.asarray,
    "function": lambda x: th.nn.functional.mse_loss(x, x + 1),
    "list": lambda x: th.cat([x, x]),
    "keyword": lambda x: th.add(input=x, other=x),
    "copy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "text": repr,
    "in a tensor": lambda x: th.as_tensor(x) + th.tensor(x),
}


@pytest.mark.parametrize("use", USES)
def test_every_use_gives_what_the_tensor_gives(use: str) -> None:
    promised, expected = USES[use](Promise(lambda scale: scale * TENSOR, 1.0)), USES[use](TENSOR)
    assert type(promised) is type(expected)
    if isinstance(expected, (th.Tensor, np.ndarray, float, list)):
        th.testing.assert_close(promised, expected)
    else:
        assert promised == expected


def test_nothing_is_computed_unless_it_is_looked_at() -> None:
    calls: list[int] = []
    promise = Promise(lambda: calls.append(1) or TENSOR)  # type: ignore[func-returns-value]
    kept = [promise]
    assert not calls
    kept[0].sum()
    assert calls == [1]
