"""``VecEnv`` classes for many environments: worker processes, Gymnasium's vector environments, EnvPool."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_trpo_plus.envs.vec.envpool import EnvPoolVecEnv as EnvPoolVecEnv
    from sb3_trpo_plus.envs.vec.gymnasium import GymnasiumVecEnv as GymnasiumVecEnv
    from sb3_trpo_plus.envs.vec.making import make_envpool_vec as make_envpool_vec
    from sb3_trpo_plus.envs.vec.making import make_gymnasium_vec as make_gymnasium_vec
    from sb3_trpo_plus.envs.vec.making import make_worker_vec as make_worker_vec
    from sb3_trpo_plus.envs.vec.workers import WorkerVecEnv as WorkerVecEnv

# Read when they are asked for: GymnasiumVecEnv needs a gymnasium that the others do not.
_MODULES = {
    "EnvPoolVecEnv": "envpool",
    "GymnasiumVecEnv": "gymnasium",
    "WorkerVecEnv": "workers",
    "make_envpool_vec": "making",
    "make_gymnasium_vec": "making",
    "make_worker_vec": "making",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
