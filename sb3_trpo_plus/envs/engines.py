"""Physics and game engines, which know how to copy themselves."""

import copy
import math
from typing import Any

# Probability that a sticky action is not made the no-op.
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
    The action that a sticky one repeats is in no clone, and nobody can read it. So it is made the no-op, here and where the
    state was saved, by as many as it takes for one of them to be heard.
    """
    stickiness = ale.getFloat("repeat_action_probability")
    if 0 < stickiness < 1:
        for _ in range(math.ceil(math.log(UNHEARD) / math.log(stickiness))):
            ale.act(0)
    ale.restoreState(state)
