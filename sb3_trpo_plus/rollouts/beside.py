"""When the critic's fit goes on beside the next rollout."""

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_trpo_plus.envs.cores import n_cores
from sb3_trpo_plus.envs.vec_states import wrappers_of
from sb3_trpo_plus.rollouts.callbacks import runs_known_code_alone


def has_time_beside(env: VecEnv, callback: BaseCallback) -> bool:
    """
    Whether a rollout leaves the interpreter to another thread for most of its time, and runs no code that may keep a reference
    to the policy, by which it would see the critic before it is fitted.

    :param env: the environments; those of ``SubprocVecEnv``, and of each ``VecEnv`` that says of itself that it
        ``leaves_interpreter_free``, are stepped by other processes or threads
    :param callback: the one that is called in the rollout
    """
    base = env.unwrapped
    is_free = isinstance(base, SubprocVecEnv) or bool(getattr(base, "leaves_interpreter_free", False))
    are_known = all(type(wrapper).__module__.startswith("stable_baselines3.") for wrapper in wrappers_of(env))
    return is_free and are_known and n_cores() > 1 and runs_known_code_alone(callback)
