"""All that a training has arrived at: what a checkpoint holds, and putting it back into a model."""

import io
import pickle
import time
import warnings
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
)
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo_plus.algorithms.generators import generators_of, global_generators, set_generators_of, set_global_generators
from sb3_trpo_plus.envs.vec_snapshots import VecSnapshot, layers, running_statistics, set_running_statistics
from sb3_trpo_plus.files.checkpoint import Checkpoint
from sb3_trpo_plus.policies.observations import parts_of, whole_of
from sb3_trpo_plus.rollouts.callbacks import family

Array = npt.NDArray[Any]

FORMAT = 1
# Attributes of a model that are plain numbers or flags.
COUNTED = (
    "num_timesteps", "_num_timesteps_at_start", "_n_updates", "_episode_num", "_n_iterations", "_is_policy_watched",
    "_others_draw",
)  # fmt: skip
# Attributes of SB3's callbacks that they go on from.
OF_CALLBACKS: dict[type[Any], tuple[str, ...]] = {
    BaseCallback: ("n_calls",),
    EvalCallback: (
        "best_mean_reward", "last_mean_reward", "evaluations_timesteps", "evaluations_results", "evaluations_length",
        "evaluations_successes",
    ),
    EveryNTimesteps: ("last_time_trigger",),
    StopTrainingOnMaxEpisodes: ("n_episodes",),
    StopTrainingOnNoModelImprovement: ("last_best_mean_reward", "no_improvement_evals"),
}  # fmt: skip


def taken(model: Any, callback: BaseCallback, environments: bytes | None) -> Checkpoint:
    """
    Everything that the rest of a training depends on, between two of its iterations. Nothing is changed.

    :param model: of this package, within ``learn``
    :param callback: the one that ``learn`` calls, with those that it calls
    :param environments: what :func:`environments_of` returned; None if they will have to be reset
    :raises TypeError: an attribute of the model can't be saved
    """
    file = io.BytesIO()
    model.save(file)
    states, arrays = global_generators(model.device)
    observations = {name: np.asarray(array) for name, array in parts_of(model._last_obs).items()}
    axes = {name: _axes(array) for name, array in observations.items()}
    progress = {
        "format": FORMAT,
        "algorithm": type(model).__name__,
        **{name: getattr(model, name) for name in COUNTED},
        "total_timesteps": model._total_timesteps,
        "seed": model.seed,
        "seconds": (time.time_ns() - model.start_time) / 1e9,
        "episodes": list(model.ep_info_buffer),
        "successes": list(model.ep_success_buffer),
        "skips": vars(model._skips) | {"_since_last_update": sorted(model._skips._since_last_update)},
        "log": _logged(model.logger),
        "generators": states,
        "spaces": [generators_of(space) for space in (model.action_space, model.observation_space)],
        "layers": layers(model.env),
        "environment": _first_of(model.env),
        "axes": axes,
        "callbacks": [_state_of(one) for one in family(callback)],
    }
    arrays = {
        **{f"generator.{name}": array for name, array in arrays.items()},
        **{f"statistics.{name}": array for name, array in running_statistics(model.env).items()},
        **{f"observation.{name}": array.transpose(axes[name]) for name, array in observations.items()},
        "episode_starts": np.asarray(model._last_episode_starts),
    }
    return Checkpoint(file.getvalue(), progress, arrays, environments)


def environments_of(env: VecEnv, callback: BaseCallback) -> bytes:
    """
    The states of the environments of a training, and of its evaluations.

    :raises TypeError: one that it trains in can't be reached, or its state can't be saved
    """
    snapshots = {"": VecSnapshot.of(env)}
    for place, other in _evaluated(callback):
        try:
            snapshots[place] = VecSnapshot.of(other)
        except TypeError as error:
            warnings.warn(f"The environments of an EvalCallback begin anew in a resumed training: {error}")
    return pickle.dumps(snapshots)


def check_environments(checkpoint: Checkpoint, env: VecEnv) -> None:
    """
    :raises ValueError: the environments are not as many as the checkpoint's, or have other ``VecEnv`` wrappers
    """
    n_envs, found, wanted = len(checkpoint.arrays["episode_starts"]), layers(env), tuple(checkpoint.progress["layers"])
    if (env.num_envs, found) != (n_envs, wanted):
        raise ValueError(difference(checkpoint, env))


def difference(checkpoint: Checkpoint, env: VecEnv) -> str:
    """What a checkpoint's environments are and what others are, for messages."""
    progress = checkpoint.progress
    wanted = _in_words(len(checkpoint.arrays["episode_starts"]), progress["layers"], progress.get("environment", "?"))
    found = _in_words(env.num_envs, layers(env), _first_of(env))
    return f"The checkpoint is of {wanted}, and env has {found}: make it as it was made for the training"


def _in_words(n_envs: int, wrappers: Iterable[str], environment: str) -> str:
    return f"{n_envs} environments in {' of '.join(wrappers)}, the first {environment}"


def _first_of(env: VecEnv) -> str:
    """As Gymnasium prints an environment in its wrappers; ``?`` where the ``VecEnv`` gives no access to it."""
    try:
        return str(env.env_method("__str__", indices=0)[0])
    except Exception:  # of whatever kind: it is for a message
        return "?"


def put_back_statistics(checkpoint: Checkpoint, env: VecEnv) -> None:
    """Give ``VecNormalize`` its running statistics back."""
    set_running_statistics(env, _named("statistics", checkpoint))


def put_back(checkpoint: Checkpoint, model: Any, callback: BaseCallback) -> None:
    """
    Let a model go on where another was, to the bit, if the environments' states are there.

    Else they are reset, with seeds that follow from the model's and the number of steps.

    :param model: with the parameters of the checkpoint, and environments that :func:`check_environments` accepts
    :param callback: the one that ``learn`` will call
    """
    progress, env = checkpoint.progress, model.env
    for name in COUNTED:
        setattr(model, name, progress[name])
    model.start_time = time.time_ns() - int(1e9 * progress["seconds"])
    model.ep_info_buffer = deque(progress["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(progress["successes"], maxlen=model._stats_window_size)
    vars(model._skips).update(progress["skips"], _since_last_update=set(progress["skips"]["_since_last_update"]))
    _log_again(model.logger, progress["log"])
    for one, (name, state) in zip(family(callback), progress["callbacks"], strict=False):
        if type(one).__name__ == name:
            vars(one).update(state)

    put_back_statistics(checkpoint, env)
    if checkpoint.environments is None:
        env.seed(None if model.seed is None else following(model.seed, model.num_timesteps))
    model._last_obs = env.reset()
    model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    if checkpoint.environments is not None:
        _restore(pickle.loads(checkpoint.environments), env, callback)
        put_back_statistics(checkpoint, env)
        axes = progress["axes"]
        observations = {
            name: array.transpose(np.argsort(axes[name])) for name, array in _named("observation", checkpoint).items()
        }
        model._last_obs = whole_of(observations)
        model._last_episode_starts = checkpoint.arrays["episode_starts"]
        # As they are in a model that was not loaded: a space's generator is then one and the same.
        model.action_space, model.observation_space = env.action_space, env.observation_space
    for space, states in zip((model.action_space, model.observation_space), progress["spaces"], strict=True):
        set_generators_of(space, states)
    set_global_generators(progress["generators"], _named("generator", checkpoint), model.device)


def following(seed: int, num_timesteps: int) -> int:
    """A seed that follows from another and a number of steps, so that nothing drawn before is drawn again."""
    return int(np.random.SeedSequence([seed, num_timesteps]).generate_state(1)[0])


def _axes(array: Array) -> list[int]:
    """
    The axes in the order in which they are in memory.

    SB3 hands on images whose channels are last in memory, and a convolution rounds otherwise where they are first.
    """
    return sorted(range(array.ndim), key=lambda axis: -array.strides[axis])


def _named(prefix: str, checkpoint: Checkpoint) -> dict[str, Array]:
    start = f"{prefix}."
    return {name.removeprefix(start): array for name, array in checkpoint.arrays.items() if name.startswith(start)}


def _state_of(callback: BaseCallback) -> tuple[str, dict[str, Any]]:
    names = [name for kind, names in OF_CALLBACKS.items() if isinstance(callback, kind) for name in names]
    return type(callback).__name__, {name: getattr(callback, name) for name in names}


def _logged(logger: Any) -> dict[str, Any]:
    """What was recorded for the next row of the log, as far as it is numbers and words."""
    values = {name: value for name, value in logger.name_to_value.items() if isinstance(value, (int, float, str, np.generic))}
    return {name: (value, logger.name_to_count[name], logger.name_to_excluded[name]) for name, value in values.items()}


def _log_again(logger: Any, recorded: dict[str, Any]) -> None:
    for name, (value, count, excluded) in recorded.items():
        logger.name_to_value[name], logger.name_to_count[name] = value, count
        logger.name_to_excluded[name] = tuple(excluded)


def _evaluated(callback: BaseCallback) -> Iterable[tuple[str, VecEnv]]:
    """The environments of the evaluations that have taken place, by the callback's place."""
    for place, one in enumerate(family(callback)):
        if isinstance(one, EvalCallback) and np.isfinite(one.last_mean_reward):
            yield str(place), one.eval_env


def _restore(snapshots: dict[str, VecSnapshot], env: VecEnv, callback: BaseCallback) -> None:
    snapshots[""].restore(env)
    for place, other in _evaluated(callback):
        if place in snapshots:
            # Its first reset would seed it, and an evaluation begins with a reset.
            other.reset()
            snapshots[place].restore(other)
