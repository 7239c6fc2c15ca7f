"""Environment wrappers for RL Zoo's ``env_wrapper``: the public names of :mod:`sb3_trpo_plus.envs.wrappers`."""

from sb3_trpo_plus.envs.wrappers import unit_actions, with_channel

__all__ = ["unit_actions", "with_channel"]
