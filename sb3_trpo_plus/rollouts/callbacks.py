"""What callbacks see of a rollout, and what they may do to it."""

from collections.abc import Callable, Iterator
from typing import Any

from stable_baselines3.common import callbacks as of_sb3
from stable_baselines3.common.callbacks import BaseCallback

# They look at no tensor and leave the policy as it is, and so does what they call, but for their own callbacks.
KNOWN = {
    of_sb3.CallbackList, of_sb3.CheckpointCallback, of_sb3.ConvertCallback, of_sb3.EvalCallback, of_sb3.EveryNTimesteps,
    of_sb3.LogEveryNTimesteps, of_sb3.ProgressBarCallback, of_sb3.StopTrainingOnMaxEpisodes,
    of_sb3.StopTrainingOnNoModelImprovement, of_sb3.StopTrainingOnRewardThreshold,
}  # fmt: skip
KNOWN_OF_RL_ZOO = {"RawStatisticsCallback", "SaveVecNormalizeCallback", "TrialEvalCallback"}
LAZY = ("obs_tensor", "values", "log_probs")


def family(callback: BaseCallback | None) -> Iterator[BaseCallback]:
    """A callback and those that it calls."""
    if isinstance(callback, BaseCallback):
        yield callback
        for name in ("callback", "callback_on_new_best"):
            yield from family(getattr(callback, name, None))
        for child in getattr(callback, "callbacks", ()):
            yield from family(child)


def runs_known_code_alone(callback: BaseCallback) -> bool:
    """Whether nothing that a user wrote is called between the steps: nothing then looks at the policy or changes it."""
    return all(map(_is_known, family(callback)))


def _is_known(callback: BaseCallback) -> bool:
    kind = type(callback)
    of_rl_zoo = kind.__module__ == "rl_zoo3.callbacks" and kind.__name__ in KNOWN_OF_RL_ZOO
    if not (kind in KNOWN or of_rl_zoo) or {"_on_step", "on_step", "update_locals"} & vars(callback).keys():
        return False
    if isinstance(callback, of_sb3.ConvertCallback):
        # LogEveryNTimesteps calls a method of its own through one.
        return callback.callback is None or type(getattr(callback.callback, "__self__", None)) in KNOWN
    # Episodes of an evaluation that are not deterministic draw from the generator that the actions come from.
    return getattr(callback, "deterministic", True)


class Locals(dict[str, Any]):
    """
    The local variables of a rollout, of which some are computed when they are read.

    Whoever copies it, into a dict or otherwise, gets all of them, computed.

    :param source: has them as attributes
    """

    source: Any = None

    @classmethod
    def shared_by(cls, callback: BaseCallback) -> "Locals":
        """
        The one that a callback and those that it calls look at from now on, in the place of the dict that they shared.

        :param callback: of the training
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
        The next step.

        :param source: has the lazy ones as attributes
        :param variables: the others
        """
        self.source = source
        for name in LAZY:
            dict.pop(self, name, None)
        dict.update(self, variables)

    def settle(self) -> None:
        """Compute what is not yet computed, and forget where it comes from."""
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
            # SB3's callbacks update their own with the one that they are given, which it is.
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
