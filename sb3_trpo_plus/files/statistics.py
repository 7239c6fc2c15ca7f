"""Reading the normalisation statistics that SB3's VecNormalize saved."""

import pathlib

from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo_plus.files.gym_years import GymYearsUnpickler, rebuild_space


def load_vec_normalize(load_path: str | pathlib.Path, venv: VecEnv) -> VecNormalize:
    """
    Load statistics saved by ``VecNormalize.save``, also those saved with Gym's spaces.

    :param load_path: path of the file
    :param venv: environments to wrap
    :return: the wrapped environments
    :raises ValueError: the file holds something else, or can't be read
    """
    with open(load_path, "rb") as file:
        unpickler = GymYearsUnpickler(file)
        try:
            loaded = unpickler.load()
        except Exception as error:
            raise ValueError(f"{load_path} can't be read as VecNormalize statistics: {error}") from error
    if not isinstance(loaded, VecNormalize):
        raise ValueError(f"{load_path} holds a {type(loaded).__name__}, not VecNormalize statistics")
    if unpickler.found_gym:
        loaded.observation_space = rebuild_space(loaded.observation_space)
        loaded.action_space = rebuild_space(loaded.action_space)
    loaded.set_venv(venv)
    return loaded
