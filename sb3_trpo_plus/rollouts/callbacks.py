"""The ``locals`` that callbacks see in a rollout, and which callbacks are known not to touch the policy."""

from collections.abc import Callable, Iterator
from typing import Any

from stable_baselines3.common import callbacks as of_sb3
from stable_baselines3.common.callbacks import BaseCallback

# Callbacks that neither read tensors of the rollout nor change the policy, apart from what callbacks given to them do.
KNOWN = {
    of_sb3.CallbackList, of_sb3.CheckpointCallback, of_sb3.ConvertCallback, of_sb3.EvalCallback, of_sb3.EveryNTimesteps,
    of_sb3.LogEveryNTimesteps, of_sb3.ProgressBarCallback, of_sb3.StopTrainingOnMaxEpisodes,
    of_sb3.StopTrainingOnNoModelImprovement, of_sb3.StopTrainingOnRewardThreshold,
}  # fmt: skip
KNOWN_OF_RL_ZOO = {"RawStatisticsCallback", "SaveVecNormalizeCallback", "TrialEvalCallback"}
LAZY = ("obs_tensor", "values", "log_probs")


def family(callback: BaseCallback | None) -> Iterator[BaseCallback]:
    """The callback and, recursively, the callbacks that it calls."""
    if isinstance(callback, BaseCallback):
        yield callback
        for name in ("callback", "callback_on_new_best"):
            yield from family(getattr(callback, name, None))
        for child in getattr(callback, "callbacks", ()):
            yield from family(child)


def runs_known_code_alone(callback: BaseCallback) -> bool:
    """Whether the callback and its children are all of ``KNOWN``, so that no user code reads or changes the policy."""
    return all(map(_is_known, family(callback)))


def _is_known(callback: BaseCallback) -> bool:
    kind = type(callback)
    of_rl_zoo = kind.__module__ == "rl_zoo3.callbacks" and kind.__name__ in KNOWN_OF_RL_ZOO
    if not (kind in KNOWN or of_rl_zoo) or {"_on_step", "on_step", "update_locals"} & vars(callback).keys():
        return False
    if isinstance(callback, of_sb3.ConvertCallback):
        # LogEveryNTimesteps wraps its own method in a ConvertCallback.
        return callback.callback is None or type(getattr(callback.callback, "__self__", None)) in KNOWN
    # A stochastic evaluation draws from the generator that the rollout's actions are sampled with.
    return getattr(callback, "deterministic", True)


class Locals(dict[str, Any]):
    """
    A callback's ``locals``, in which the variables of ``LAZY`` are computed only when they are read.

    Copies, also into a plain dict, contain all of them.

    :param source: object with the ``LAZY`` variables as attributes; None: there are none to compute
    """

    source: Any = None

    @classmethod
    def shared_by(cls, callback: BaseCallback) -> "Locals":
        """
        Replace the ``locals`` dict that a callback and its children share by a single :class:`Locals`.

        :param callback: the one given to ``collect_rollouts``
        :return: their new ``locals``
        """
        if isinstance(callback.locals, cls):
            return callback.locals
        before = callback.locals
        shared = cls(before)
        for one in family(callback):
            if one.locals is before:
                one.locals = shared
        return shared

    def show(self, source: Any, **variables: Any) -> None:
        """
        Set the variables of the next step.

        :param source: object with the ``LAZY`` variables of the step as attributes
        :param variables: all others, by name
        """
        self.source = source
        for name in LAZY:
            dict.pop(self, name, None)
        dict.update(self, variables)

    def settle(self) -> None:
        """Compute the ``LAZY`` variables that have not been read yet, and drop ``source``."""
        source, self.source = self.source, None
        if source is not None:
            for name in LAZY:
                if not dict.__contains__(self, name):
                    dict.__setitem__(self, name, getattr(source, name))

    def __missing__(self, name: str) -> Any:
        if name not in LAZY or self.source is None:
            raise KeyError(name)
        value = getattr(self.source, name)
        dict.__setitem__(self, name, value)
        return value

    def __contains__(self, name: object) -> bool:
        return dict.__contains__(self, name) or (self.source is not None and name in LAZY)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401  (it is what get() is made of)

    def update(self, *args: Any, **kwargs: Any) -> None:
        if args and args[0] is self:
            # BaseCallback.update_locals does self.locals.update(locals_), and here both are this object.
            return
        dict.update(self, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self),)

    def clear(self) -> None:
        self.source = None
        dict.clear(self)


def _settled(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    def call(self: Locals, *args: Any, **kwargs: Any) -> Any:
        self.settle()
        return method(self, *args, **kwargs)

    return call


for _name in (
    "__iter__", "__reversed__", "__len__", "__eq__", "__ne__", "__or__", "__ror__", "__repr__", "__delitem__", "copy", "items",
    "keys", "pop", "popitem", "setdefault", "values",
):  # fmt: skip
    setattr(Locals, _name, _settled(_name))
