"""The infos of a step, without a dict for each environment that has nothing to tell."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsIndex, overload

Info = dict[str, Any]
# In the place of what was not read yet. None could be what somebody put there.
_UNREAD: Any = object()


class Infos(list[Info]):
    """
    What ``VecEnv.step`` returns as its infos: a list of dicts, which are made when they are read.

    Whatever is done with it, it is a list of all of them. A reader who only wants to know of finished episodes takes
    :attr:`told`, and no dict is made for an environment that has none. What is put into the list is told as well.

    :param n_envs: length of the list
    :param told: by index, the dicts of the environments whose episode ended, and of others that have statistics of an episode
    :param others: makes the dict of one of the other environments; None: these are empty
    """

    def __init__(self, n_envs: int, told: Mapping[int, Info], others: Callable[[int], Info] | None = None) -> None:
        super().__init__([_UNREAD] * n_envs)
        self.told = told
        self._others = others
        for index, info in told.items():
            list.__setitem__(self, index, info)

    def _made(self, index: SupportsIndex) -> Info:
        info = list.__getitem__(self, index)
        if info is _UNREAD:
            at = index.__index__() % len(self)
            info = {} if self._others is None else self._others(at)
            list.__setitem__(self, at, info)
        return info

    def _all(self) -> list[Info]:
        """All of the dicts, in a plain list."""
        return [self._made(index) for index in range(len(self))]

    @overload
    def __getitem__(self, index: SupportsIndex) -> Info: ...
    @overload
    def __getitem__(self, index: slice) -> list[Info]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Info | list[Info]:
        return self._all()[index] if isinstance(index, slice) else self._made(index)

    def __iter__(self) -> Iterator[Info]:
        index = 0
        while index < len(self):
            yield self._made(index)
            index += 1

    def __radd__(self, other: list[Any]) -> list[Any]:
        # Else a list would add itself to what is stored.
        return other + self._all()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return list, (self._all(),)


def _reading(name: str) -> Callable[..., Any]:
    method = getattr(list, name)

    def call(self: Infos, *args: Any, **kwargs: Any) -> Any:
        self._all()
        return method(self, *args, **kwargs)

    return call


def _changing(name: str) -> Callable[..., Any]:
    method = getattr(list, name)

    def call(self: Infos, *args: Any, **kwargs: Any) -> Any:
        self._all()
        try:
            return method(self, *args, **kwargs)
        finally:
            self.told = dict(enumerate(self))

    return call


for _name in (
    "__add__", "__contains__", "__eq__", "__ge__", "__gt__", "__le__", "__lt__", "__mul__", "__ne__", "__repr__",
    "__reversed__", "__rmul__", "copy", "count", "index",
):  # fmt: skip
    setattr(Infos, _name, _reading(_name))
for _name in (
    "__delitem__", "__iadd__", "__imul__", "__setitem__", "append", "clear", "extend", "insert", "pop", "remove", "reverse",
    "sort",
):  # fmt: skip
    setattr(Infos, _name, _changing(_name))
