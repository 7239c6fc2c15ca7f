"""Tensors that are computed when something is done with them."""

from collections.abc import Callable
from typing import Any

import torch as th


class Promise:
    """
    Stands in for a tensor until somebody asks anything of it, and then behaves as that tensor, but for ``isinstance``.

    Not a subclass of tensors: between the steps of an environment, with torch's code out of the processor's caches, making one
    takes ten microseconds, and thousands of them keep Python's garbage collector busy.

    :param compute: called with the arguments at each use
    """

    __slots__ = ("_arguments", "_compute")

    def __init__(self, compute: Callable[..., th.Tensor], *arguments: Any) -> None:
        self._compute, self._arguments = compute, arguments

    def __getattr__(self, name: str) -> Any:
        return getattr(_kept(self), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*_kept(args), **_kept(kwargs or {}))


def _kept(value: Any) -> Any:
    """The value with tensors in the place of promises."""
    if type(value) is Promise:
        return value._compute(*value._arguments)
    if isinstance(value, (tuple, list)):
        return type(value)(map(_kept, value))
    if isinstance(value, dict):
        return {key: _kept(item) for key, item in value.items()}
    return value


def _asks_the_tensor(name: str) -> Callable[..., Any]:
    return lambda promise, *args, **kwargs: getattr(_kept(promise), name)(*_kept(args), **_kept(kwargs))


# Python looks up operators on the class, past __getattr__.
_OF_ALL_OBJECTS = {
    "__repr__",
    "__str__",
    "__format__",
    "__reduce_ex__",
    "__eq__",
    "__ne__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
}
_OWN = {*dir(object), *vars(Promise), "__torch_dispatch__"}
for _name in dir(th.Tensor):
    _is_operator = _name.startswith("__") and callable(getattr(th.Tensor, _name))
    if _is_operator and (_name in _OF_ALL_OBJECTS or _name not in _OWN):
        setattr(Promise, _name, _asks_the_tensor(_name))
