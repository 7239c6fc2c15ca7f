"""Reading the normalisation statistics that SB3's VecNormalize saved."""

import math
import pathlib
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.gym_years import check_trust, unpickle
from sb3_trpo_plus.files.pickles import Made, read
from sb3_trpo_plus.files.rebuild import Rebuilding, names_told, number, path_of
from sb3_trpo_plus.files.words import one_line, shown

MOST_BYTES = 2**30

_NUMBERS = ("clip_obs", "clip_reward", "gamma", "epsilon")
_POSITIVE = ("clip_obs", "clip_reward", "epsilon")
_BOOLS = ("training", "norm_obs", "norm_reward")


def load_vec_normalize(load_path: str | pathlib.Path, venv: VecEnv, trust: bool = False) -> VecNormalize:
    """
    Load statistics saved by ``VecNormalize.save``, also those saved with Gym's spaces.

    The file is read as data: nothing that it has is run.

    :param load_path: path of the file
    :param venv: environments to wrap
    :param trust: whether to unpickle whatever the file has, which may run any code
    :return: the wrapped environments
    :raises UnsafeFileError: the file has something that is not data
    :raises ModelFileError: the file holds something else, or can't be read
    """
    loaded = read_vec_normalize(load_path, trust)
    loaded.set_venv(venv)
    # What the wrapper's constructor takes from its environments; only the trusted way has it from the file.
    loaded.metadata = venv.metadata
    loaded.reset_infos = [{} for _ in range(venv.num_envs)]
    loaded._seeds, loaded._options = [None] * venv.num_envs, [{} for _ in range(venv.num_envs)]
    return loaded


def read_vec_normalize(load_path: str | pathlib.Path, trust: bool = False) -> VecNormalize:
    """As :func:`load_vec_normalize`, without environments."""
    check_trust(trust)
    path = pathlib.Path(load_path)
    if path.stat().st_size > MOST_BYTES:
        raise UnsafeFileError(f"{load_path} is refused: statistics of more than {MOST_BYTES:,} bytes")
    try:
        loaded = unpickle(path.read_bytes()) if trust else _rebuilt(path.read_bytes())
    except UnsafeFileError as error:
        raise UnsafeFileError(
            f"{load_path} can't be read as VecNormalize statistics: it has {one_line(str(error), 300)}",
            "Pass trust=True to run whatever it asks for, if you trust those who made it",
        ) from error
    except Exception as error:
        raise ModelFileError(f"{load_path} can't be read as VecNormalize statistics: {one_line(str(error), 300)}") from error
    if not isinstance(loaded, VecNormalize):
        raise ModelFileError(f"{load_path} holds a {type(loaded).__name__}, not VecNormalize statistics")
    return loaded


def names_in_statistics(load_path: str | pathlib.Path) -> list[str]:
    """All that a file of statistics names, nothing of which is imported; empty if it is no pickle."""
    try:
        return names_told(read(pathlib.Path(load_path).read_bytes()))
    except UnsafeFileError:
        return []


def _rebuilt(pickled: bytes) -> Any:
    return Rebuilding(makers={path_of(VecNormalize): _vec_normalize}).of(read(pickled))


def _vec_normalize(rebuilding: Rebuilding, made: Made) -> VecNormalize:
    optional = {"norm_obs_keys": None, "obs_rms": None, "old_obs": None, "old_reward": None}
    state = rebuilding.state(made, "observation_space", "action_space", "ret_rms", *_NUMBERS, *_BOOLS, **optional)
    keys, statistics = state["norm_obs_keys"], state["obs_rms"]
    of_observations = list(statistics.values()) if isinstance(statistics, dict) else [statistics]
    if not (
        all(isinstance(state[name], bool) for name in _BOOLS)
        and all(isinstance(state[name], spaces.Space) for name in ("observation_space", "action_space"))
        and (keys is None or (isinstance(keys, list) and all(isinstance(key, str) for key in keys)))
        and all(isinstance(one, RunningMeanStd) for one in of_observations if one is not None)
        and isinstance(state["ret_rms"], RunningMeanStd)
        and state["ret_rms"].mean.shape == ()
    ):
        raise UnsafeFileError("a VecNormalize whose attributes are of other kinds")
    _check_shapes(state["observation_space"], statistics)
    settings = {name: _limit(state[name]) for name in _NUMBERS}
    if min(settings[name] for name in _POSITIVE) <= 0 or not 0 <= settings["gamma"] <= 1:
        raise UnsafeFileError(f"a VecNormalize with {shown(settings)}")
    new = VecNormalize.__new__(VecNormalize)
    vars(new).update({**state, **settings}, venv=None)
    for name in ("old_obs", "old_reward"):
        parts = state[name].values() if isinstance(state[name], dict) else [state[name]]
        if not all(isinstance(part, np.ndarray) for part in parts):
            delattr(new, name)
    if isinstance(new.observation_space, spaces.Dict):
        new.obs_spaces = new.observation_space.spaces
        new.norm_obs_keys = list(new.obs_spaces) if keys is None else keys
    if statistics is None:
        del new.obs_rms
    if new.norm_obs:
        normalised = new.norm_obs_keys if isinstance(new.observation_space, spaces.Dict) else None
        found = list(statistics) if isinstance(statistics, dict) else None
        if statistics is None or found != normalised:
            raise UnsafeFileError("a VecNormalize without statistics of what it normalises")
    return new


def _limit(value: Any) -> float:
    """A number that may be infinite: what is not to be clipped."""
    return float(value) if isinstance(value, float) and value == math.inf else number(value)


def _check_shapes(space: spaces.Space[Any], statistics: Any) -> None:
    within = space.spaces if isinstance(space, spaces.Dict) else {}
    pairs = (
        [(statistics[key], within.get(key)) for key in statistics] if isinstance(statistics, dict) else [(statistics, space)]
    )
    for one, of in pairs:
        if one is not None and (of is None or one.mean.shape != of.shape):
            raise UnsafeFileError("statistics of another shape than the observations'")
