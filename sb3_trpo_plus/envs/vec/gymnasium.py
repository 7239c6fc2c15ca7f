"""An SB3 ``VecEnv`` over any of Gymnasium's vector environments."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs

from sb3_trpo_plus.envs.vec.arrays import ArrayInfos, ArrayVecEnv, Endings, Step, Wrapper, bits, info_at, own, put_rows, rows
from sb3_trpo_plus.envs.vec.infos import Info

try:
    from gymnasium.vector import (
        AsyncVectorEnv,
        AutoresetMode,
        SyncVectorEnv,
        VectorEnv,
        VectorObservationWrapper,
        VectorWrapper,
    )
except ImportError as error:
    raise ImportError(
        f"GymnasiumVecEnv needs gymnasium 1.1 or later, where vector environments tell how they reset, not {gym.__version__}: "
        "pip install 'gymnasium>=1.1'"
    ) from error

Vector: TypeAlias = VectorEnv[Any, Any, Any]

# Of Gymnasium's wrappers, those that forget the state of every environment when some are reset, or can't reset some.
KEEP_ONE_STATE = ("NormalizeObservation", "NormalizeReward")
# They do what is done here anyway, in a form that is not SB3's.
NOT_NEEDED = ("DictInfoToList", "RecordEpisodeStatistics")
OF_THE_END = ("final_obs", "_final_obs", "final_info", "_final_info")


class GymnasiumVecEnv(ArrayVecEnv):
    """
    Any ``gymnasium.vector.VectorEnv`` as an SB3 ``VecEnv``.

    An environment whose episode ended is reset in the same step, as SB3 has it: by the vector environment itself in the mode
    ``SAME_STEP``, and by ``reset(options={"reset_mask": ...})`` in the modes ``DISABLED`` and ``NEXT_STEP``. Those of the mode
    ``NEXT_STEP`` need not heed the mask; it is known of ``SyncVectorEnv`` and ``AsyncVectorEnv``, and Gymnasium's own vector
    environment of CartPole is reset by setting its state. Others are refused.

    The values in infos are those of the step, unless an environment changes an object in place that it returned.

    :param venv: the vector environment, or a function that makes it; it is closed with this one
    :param monitor: whether ``info["episode"]`` has return, length and time of an episode at its end, as from ``Monitor``
    :param monitor_file: where to write these, as ``Monitor`` does; None: nowhere
    :raises TypeError: ``venv`` is none
    :raises ValueError: it, or a wrapper around it, can't reset some of the environments
    """

    def __init__(self, venv: Vector | Callable[[], Vector], monitor: bool = True, monitor_file: str | None = None) -> None:
        made = venv if isinstance(venv, VectorEnv) else venv() if callable(venv) else venv
        if not isinstance(made, VectorEnv):
            raise TypeError(f"venv must be a gymnasium.vector.VectorEnv or make one, not {type(made).__name__}")
        self.venv = made
        self._base: Any = made.unwrapped
        self._restart = self._way_to_restart()
        # Wrappers may change observations with each look at them.
        self._doubted = self._base is made and not isinstance(made, (SyncVectorEnv, AsyncVectorEnv))
        super().__init__(made.num_envs, made.single_observation_space, made.single_action_space, monitor, monitor_file)

    @property
    def leaves_interpreter_free(self) -> bool:
        """Whether the environments step in other processes."""
        return isinstance(self._base, AsyncVectorEnv)

    def _way_to_restart(self) -> Callable[[Step, npt.NDArray[np.intp]], Endings]:
        mode = _autoreset_mode(self.venv)
        _check_wrappers(self.venv, mode)
        if mode == "SAME_STEP":
            return self._was_restarted
        if mode == "DISABLED" or _heeds_mask(self._base):
            return self._restart_by_mask
        if _is_cart_pole(self._base):
            return self._restart_cart_pole
        raise ValueError(
            f"venv: a {type(self._base).__name__} resets an environment in the step after its end (AutoresetMode.NEXT_STEP), "
            "which ignores an action. SB3 has no such steps, and it is not known that this class can reset some environments "
            "when asked to. Make it with autoreset_mode=AutoresetMode.SAME_STEP or DISABLED; of EnvPool, make EnvPoolVecEnv"
        )

    def _reset_all(self, seed: int | None, options: dict[str, Any] | None) -> tuple[VecEnvObs, ArrayInfos]:
        observations, infos = self.venv.reset(seed=seed, options=options)
        return own(self.observation_space, observations), infos

    def _step_all(self, actions: npt.NDArray[Any]) -> Step:
        observations, rewards, terminated, truncated, infos = self.venv.step(actions)
        return Step(
            own(self.observation_space, observations),
            np.asarray(rewards),
            np.asarray(terminated, dtype=np.bool_),
            np.asarray(truncated, dtype=np.bool_),
            _kept(infos),
        )

    def _begin_again(self, step: Step, ended: npt.NDArray[np.intp]) -> Endings:
        return self._restart(step, ended)

    def _was_restarted(self, step: Step, ended: npt.NDArray[np.intp]) -> Endings:
        infos = step.infos
        if "final_obs" not in infos:
            raise ValueError(
                f"venv: a {type(self._base).__name__} says that it resets in the step of the end (AutoresetMode.SAME_STEP), "
                'but there was no infos["final_obs"] when an episode ended'
            )
        of_reset = {key: value for key, value in infos.items() if key not in OF_THE_END}
        last, last_infos, reset_infos = [], [], []
        for index in ended:
            # Without index, numbers are no longer arrays.
            last.append(rows(own(self.observation_space, rows(infos["final_obs"], index)), ()))
            last_infos.append(_final_info(infos, index))
            reset_infos.append(info_at(of_reset, index))
        return Endings(last, last_infos, reset_infos)

    def _restart_by_mask(self, step: Step, ended: npt.NDArray[np.intp]) -> Endings:
        mask = np.zeros(self.num_envs, np.bool_)
        mask[ended] = True
        first, infos = self.venv.reset(options={"reset_mask": mask})
        if self._doubted and ended.size < self.num_envs:
            self._check_heeded(step, first, ~mask)
        reset_infos = [info_at(infos, index) for index in ended]
        return self._restarted(step, ended, rows(own(self.observation_space, first), ended), reset_infos)

    def _check_heeded(self, step: Step, first: Any, others: npt.NDArray[np.bool_]) -> None:
        before, after = rows(step.observations, others), rows(own(self.observation_space, first), others)
        if list(bits(before)) != list(bits(after)):
            raise ValueError(
                f"venv: a {type(self._base).__name__} says that it resets no environment by itself (AutoresetMode.DISABLED), "
                'which includes that reset(options={"reset_mask": ...}) leaves the others alone, but they changed'
            )
        self._doubted = False

    def _restart_cart_pole(self, step: Step, ended: npt.NDArray[np.intp]) -> Endings:
        """Its ``reset`` is for all environments, and its steps reset by the same draws as here."""
        base = self._base
        base.state[:, ended] = base.np_random.uniform(base.low, base.high, size=(4, ended.size))
        base.steps[ended] = 0
        base.prev_done[ended] = False
        first = base.state.T.astype(np.float32)
        for wrapper in reversed(list(_wrappers_of(self.venv))):
            if isinstance(wrapper, VectorObservationWrapper):
                first = wrapper.observations(first)
        return self._restarted(step, ended, rows(own(self.observation_space, first), ended), [{} for _ in ended])

    def _restarted(self, step: Step, ended: npt.NDArray[np.intp], first: Any, reset_infos: list[Info]) -> Endings:
        last = rows(step.observations, ended)
        put_rows(step.observations, ended, first)
        last_infos = [info_at(step.infos, index) for index in ended]
        return Endings([rows(last, place) for place in range(ended.size)], last_infos, reset_infos)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Attributes of the environments; of the vector environment where it is one thing.

        :raises AttributeError: there is none of this name
        """
        if isinstance(self._base, SyncVectorEnv):
            return [self._base.envs[index].get_wrapper_attr(attr_name) for index in self._get_indices(indices)]
        if isinstance(self._base, AsyncVectorEnv):
            self._check_attr(attr_name)
            values: Sequence[Any] = self._base.get_attr(attr_name)
            return [values[index] for index in self._get_indices(indices)]
        owner = self.venv if hasattr(self.venv, attr_name) else self._base
        return [getattr(owner, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set attributes of the environments, where they are; of the vector environment where it is one thing.

        :raises ValueError: some environments' attributes can't be set without the others'
        """
        if isinstance(self._base, SyncVectorEnv):
            for index in self._get_indices(indices):
                self._base.envs[index].set_wrapper_attr(attr_name, value)
            return
        self._check_all(indices, f"set_attr({attr_name!r})")
        if isinstance(self._base, AsyncVectorEnv):
            self._base.set_attr(attr_name, [value] * self.num_envs)
        else:
            setattr(self._base, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """
        Call a method of the environments.

        :raises AttributeError: there is none of this name, or the environments are one thing
        :raises ValueError: some environments' method can't be called without the others'
        """
        if isinstance(self._base, SyncVectorEnv):
            envs = [self._base.envs[index] for index in self._get_indices(indices)]
            return [env.get_wrapper_attr(method_name)(*args, **kwargs) for env in envs]
        self._check_all(indices, f"env_method({method_name!r})")
        if isinstance(self._base, AsyncVectorEnv):
            self._check_attr(method_name)
            return list(self._base.call(method_name, *args, **kwargs))
        raise AttributeError(
            f"env_method({method_name!r}): a {type(self._base).__name__} is all environments in one, without methods of each"
        )

    def env_is_wrapped(self, wrapper_class: type[Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        Whether the environments are wrapped in this class; with ``monitor`` they are as good as wrapped in ``Monitor``.

        :raises ValueError: it can't be known of environments in other processes
        """
        claimed = super().env_is_wrapped(wrapper_class, indices)
        if isinstance(self._base, SyncVectorEnv):
            envs = [self._base.envs[index] for index in self._get_indices(indices)]
            return [has or is_wrapped(env, wrapper_class) for has, env in zip(claimed, envs, strict=True)]
        if isinstance(self._base, AsyncVectorEnv):
            if wrapper_class is not Monitor:
                raise ValueError(f"env_is_wrapped({wrapper_class.__name__}): an AsyncVectorEnv tells this of Monitor alone")
            monitored = self._base.call("has_wrapper_attr", "get_episode_rewards")
            return [self.monitor or monitored[index] for index in self._get_indices(indices)]
        return claimed

    def get_images(self) -> Sequence[npt.NDArray[Any] | None]:
        if self.render_mode != "rgb_array":
            warnings.warn(f'The render mode is {self.render_mode}, but only "rgb_array" gives images.')
            return [None for _ in range(self.num_envs)]
        return list(cast(Any, self.venv.render()))

    def _check_attr(self, name: str) -> None:
        # To ask for what they have not would end the processes.
        if not all(self._base.call("has_wrapper_attr", name)):
            raise AttributeError(f"The environments have no attribute {name!r}")

    def _check_all(self, indices: VecEnvIndices, what: str) -> None:
        if indices is not None and sorted(self._get_indices(indices)) != list(range(self.num_envs)):
            name = type(self._base).__name__
            raise ValueError(f"{what}: a {name} does this for all environments, not for some (indices={indices})")

    def _close(self) -> None:
        self.venv.close()


def _autoreset_mode(venv: Vector) -> str:
    """NEXT_STEP, SAME_STEP or DISABLED."""
    mode = venv.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(mode).name
    except ValueError as error:
        raise ValueError(
            f'venv: metadata["autoreset_mode"] of a {type(venv.unwrapped).__name__} must be an AutoresetMode, since nothing '
            f"else tells when it resets an environment, but is {mode!r}"
        ) from error


def _wrappers_of(venv: Vector) -> Iterator[Any]:
    """From the outermost."""
    while isinstance(venv, VectorWrapper):
        yield venv
        venv = venv.env


def _check_wrappers(venv: Vector, mode: str) -> None:
    """Raise ValueError if a wrapper would do something else than it does where Gymnasium resets."""
    for wrapper in _wrappers_of(venv):
        kind = type(wrapper)
        if kind.__name__ in NOT_NEEDED:
            raise ValueError(
                f"venv: leave out the wrapper {kind.__name__}, infos are a list of dicts here anyway, with the statistics of "
                "episodes"
            )
        resets = kind.reset not in (VectorWrapper.reset, VectorObservationWrapper.reset)
        if mode != "SAME_STEP" and (kind.__name__ in KEEP_ONE_STATE or (resets and mode == "NEXT_STEP")):
            raise ValueError(
                f"venv: the wrapper {kind.__name__} is not known to reset some environments without the others. Take "
                "SB3's VecNormalize, or use autoreset_mode=AutoresetMode.SAME_STEP"
            )


def _heeds_mask(base: Vector) -> bool:
    """Whether a vector environment in the mode NEXT_STEP is known to reset only the environments of ``reset_mask``."""
    if type(base) is AsyncVectorEnv:
        # Without shared memory, a process remembers that it has to reset in the next step; of other workers nothing is known.
        return bool(base.shared_memory) and base.worker is None
    return type(base) is SyncVectorEnv


def _is_cart_pole(base: Vector) -> bool:
    try:
        from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
    except ImportError:
        return False
    return type(base) is CartPoleVectorEnv


def _kept(infos: dict[str, Any]) -> dict[str, Any]:
    """A copy, that later steps can't write to."""
    copies = {}
    for key, value in infos.items():
        copies[key] = _kept(value) if isinstance(value, dict) else value.copy() if isinstance(value, np.ndarray) else value
    return copies


def _final_info(infos: ArrayInfos, index: int) -> Info:
    final = infos.get("final_info")
    if isinstance(final, dict):
        return info_at(final, index)
    if final is None:
        return {key: value for key, value in info_at(infos, index).items() if key not in OF_THE_END}
    return dict(final[index])
