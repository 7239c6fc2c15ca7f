"""
Registration with RL Zoo: importing this package registers the algorithms of this library with RL Zoo in this process.

So they can be used by ``rl_zoo3 ... --gym-packages sb3_trpo_plus.zoo``, or by an import in a ``custom_envs`` module, which RL
Zoo imports if there is one (see :mod:`sb3_trpo_plus.command_line.opt_in`).
"""

from sb3_trpo_plus.zoo.manager import hyperparams_file
from sb3_trpo_plus.zoo.registration import ALGORITHMS, register
from sb3_trpo_plus.zoo.search_spaces import (
    SEARCH,
    convert_ppo_penalty_params,
    sample_hyperparams,
    sample_ppo_penalty_hyperparams,
    sample_vine_hyperparams,
)

__all__ = [
    "ALGORITHMS",
    "SEARCH",
    "convert_ppo_penalty_params",
    "hyperparams_file",
    "register",
    "sample_hyperparams",
    "sample_ppo_penalty_hyperparams",
    "sample_vine_hyperparams",
]

register()
