"""
Registration with RL Zoo: importing this package makes the algorithms of this library RL Zoo's own in the running process.

That is the contract of RL Zoo's ``--gym-packages sb3_trpo_plus.zoo``, and of the ``custom_envs`` module that RL Zoo imports
where there is one (see :mod:`sb3_trpo_plus.command_line.opt_in`).
"""

from sb3_trpo_plus.zoo.registration import ALGORITHMS, hyperparams_file, register, whose
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
    "whose",
]

register()
