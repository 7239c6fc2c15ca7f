"""Saving and restoring the states of environments: the public names of :mod:`sb3_trpo_plus.envs`."""

from sb3_trpo_plus.envs.states import HasState, Restorable, State, get_state, set_state
from sb3_trpo_plus.envs.vec_states import VecState, branching, check_restorable, get_vec_state, set_vec_state

__all__ = [
    "HasState",
    "Restorable",
    "State",
    "VecState",
    "branching",
    "check_restorable",
    "get_state",
    "get_vec_state",
    "set_state",
    "set_vec_state",
]
