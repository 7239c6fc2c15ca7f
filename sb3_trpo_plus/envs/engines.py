"""States of physics and game engines (MuJoCo, ALE), which have functions of their own for copying them."""

import copy
import math
from typing import Any

# Accepted probability that all no-ops of restore_ale are lost to sticky actions.
UNHEARD = 1e-12


def is_engine(value: Any) -> bool:
    kind = type(value)
    return (kind.__module__.split(".")[0], kind.__name__) in {("mujoco", "MjData"), ("ale_py", "ALEInterface")}


def engine_state(engine: Any) -> Any:
    if hasattr(engine, "qpos"):
        return copy.copy(engine)
    state = engine.cloneState(include_rng=True)
    restore_ale(engine, state)
    return state


def restore_ale(ale: Any, state: Any) -> None:
    """
    Restore a state of ALE, with the no-op as the previous action, which sticky actions repeat.

    ALE neither clones that action nor lets it be read. Therefore no-ops are played before restoring, here and when a state is
    saved: as many as it takes for one of them to be executed, each being replaced with the stickiness as probability.

    :param ale: the ``ALEInterface``
    :param state: what ``cloneState`` returned
    """
    stickiness = ale.getFloat("repeat_action_probability")
    if 0 < stickiness < 1:
        for _ in range(math.ceil(math.log(UNHEARD) / math.log(stickiness))):
            ale.act(0)
    ale.restoreState(state)
