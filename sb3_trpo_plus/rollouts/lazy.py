"""Attributes that are brought up to date when they are read."""

from collections.abc import Callable
from typing import Any

Fill = Callable[[], None]


def filled_when_read(thing: Any, names: tuple[str, ...], fill: Fill, written: Fill = lambda: None) -> Callable[[], None]:
    """
    Call a function whenever some attributes of an object are about to be read.

    Copying or pickling the object calls it too; the copy is of the original class.

    :param thing: its ``__class__`` is replaced by a subclass with a property for each name
    :param names: of the attributes
    :param fill: brings the attributes up to date; must access them through ``vars(thing)``
    :param written: called whenever somebody else assigns to one of the attributes
    :return: function that gives the object its original class back
    """
    original: Any = type(thing)

    def attribute(name: str) -> property:
        def read(self: Any) -> Any:
            fill()
            if name not in vars(self):
                raise AttributeError(f"{original.__name__!r} object has no attribute {name!r}")
            return vars(self)[name]

        def write(self: Any, value: Any) -> None:
            vars(self)[name] = value
            written()

        return property(read, write)

    def reduce_ex(self: Any, protocol: Any) -> Any:
        fill()
        return _remade, (original, vars(self))

    members: dict[str, Any] = {name: attribute(name) for name in names}
    thing.__class__ = type(
        original.__name__, (original,), {**members, "__reduce_ex__": reduce_ex, "__module__": original.__module__}
    )

    def take_back() -> None:
        thing.__class__ = original

    return take_back


def _remade(kind: Any, attributes: dict[str, Any]) -> Any:
    """Make an object without calling its constructor. At module level, so that pickle can refer to it."""
    thing = kind.__new__(kind)
    vars(thing).update(attributes)
    return thing
