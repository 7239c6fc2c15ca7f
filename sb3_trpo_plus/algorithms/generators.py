"""The states of all random generators that a training draws from, apart from those inside the environments."""

import random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces

from sb3_trpo_plus.envs.pickling import spaces_in

Array = npt.NDArray[Any]


def global_generators(device: th.device) -> tuple[dict[str, Any], dict[str, Array]]:
    """
    The states of Python's, NumPy's and torch's global generators.

    :param device: of the model, whose generator counts too
    :return: what JSON can represent, and arrays
    """
    numpy: dict[str, Any] = dict(np.random.get_state(legacy=False))  # noqa: NPY002  (the generator that SB3 seeds)
    key = numpy.pop("state")
    states = {"python": random.getstate(), "numpy": {**numpy, "pos": key["pos"]}}
    arrays = {"numpy": key["key"], "torch": th.get_rng_state().numpy()}
    if device.type == "cuda":
        arrays["cuda"] = th.cuda.get_rng_state(device).numpy()
    return states, arrays


def set_global_generators(states: dict[str, Any], arrays: dict[str, Array], device: th.device) -> None:
    """Put the global generators back into the states that :func:`global_generators` returned, here or in another process."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy = dict(states["numpy"])
    numpy["state"] = {"key": arrays["numpy"], "pos": numpy.pop("pos")}
    np.random.set_state(numpy)  # noqa: NPY002
    th.set_rng_state(th.from_numpy(arrays["torch"]))
    if device.type == "cuda" and "cuda" in arrays:
        th.cuda.set_rng_state(th.from_numpy(arrays["cuda"]), device)


def generators_of(space: spaces.Space[Any]) -> list[Any]:
    """The states of a space's generator and of those of the spaces in it; None for one that was never used."""
    return [None if one._np_random is None else one._np_random.bit_generator.state for one in spaces_in(space)]


def set_generators_of(space: spaces.Space[Any], states: list[Any]) -> None:
    """Put the generators of a space, and of those in it, into the states that :func:`generators_of` returned."""
    for one, state in zip(spaces_in(space), states, strict=True):
        if state is not None:
            # In place, since an environment may hold the generator too.
            one.np_random.bit_generator.state = state
