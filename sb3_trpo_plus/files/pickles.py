"""
Pickles as trees of data. A pickle is a program; here its instructions are followed without importing or calling anything.

What the program would have named becomes a :class:`Named`, what it would have made by a call becomes a :class:`Made`. Which of
those become objects, and how, is for :mod:`sb3_trpo_plus.files.rebuild` to say.
"""

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sb3_trpo_plus.files.errors import UnsafeFileError

# Far above what real files have (a few thousand), and far below what takes a minute to follow.
MOST_INSTRUCTIONS = 2_000_000
# Python's own limit on recursion, with room for the callers.
DEEPEST = 100

Key = str | int | float | bool | bytes | None


@dataclass(frozen=True)
class Named:
    """What would be imported: an attribute, possibly dotted, of a module."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Made:
    """What would be made by a call, and then filled."""

    function: Any
    arguments: Any
    #: Whether by the class's ``__new__``, and not by a call
    is_new: bool = False
    state: Any = None
    elements: list[Any] = field(default_factory=list)
    items: dict[Key, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """What the pickle refers to by an identifier, outside of itself, as torch's do for the memory of tensors."""

    identifier: Any


def read(pickled: bytes) -> Any:
    """
    Follow a pickle.

    :param pickled: of any protocol that Python 3 writes by default
    :return: None, bool, int, float, str, bytes, list, tuple, dict with keys of the simple kinds, :class:`Named`,
        :class:`Made`, or :class:`Kept`
    :raises UnsafeFileError: it is no pickle, is cut off, or has an instruction that no model needs
    """
    machine = _Machine()
    try:
        # genops looks lengths up in what is there, and reserves no memory for what is not.
        for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if number > MOST_INSTRUCTIONS:
                raise UnsafeFileError(f"a pickle of more than {MOST_INSTRUCTIONS:,} instructions")
            machine.follow(opcode.name, argument)
        (result,) = machine.stack
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, UnicodeError) as error:
        if isinstance(error, UnsafeFileError):
            raise
        raise UnsafeFileError(f"no whole pickle ({type(error).__name__})") from error
    return result


def names_in(tree: Any) -> Iterator[Named | Made]:
    """
    All that a pickle names, each once, and all that it would make.

    :param tree: from :func:`read`
    """
    seen: set[int] = set()
    named: set[Named] = set()
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, Named):
            if node not in named:
                named.add(node)
                yield node
        elif isinstance(node, (list, tuple, dict, Made, Kept)) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, Made):
                yield node
                pending += [node.function, node.arguments, node.state, node.elements, node.items]
            elif isinstance(node, Kept):
                pending.append(node.identifier)
            else:
                pending += node.values() if isinstance(node, dict) else node


# cloudpickle fills functions and classes that it saved by value through a call beside them.
_SETS_STATE = {"_function_setstate", "_class_setstate"}

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "INT", "LONG", "FLOAT", "UNICODE",
}  # fmt: skip
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_EMPTY = {"EMPTY_LIST", "EMPTY_DICT"}
_NOTHING = {"PROTO", "FRAME", "STOP"}


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memory: dict[int, Any] = {}

    def follow(self, instruction: str, argument: Any) -> None:
        stack = self.stack
        if instruction in _NOTHING:
            pass
        elif instruction in _LITERALS:
            stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif instruction in _CONSTANTS:
            stack.append(_CONSTANTS[instruction])
        elif instruction in _EMPTY:
            stack.append([] if instruction == "EMPTY_LIST" else {})
        elif instruction in _TUPLES:
            count = _TUPLES[instruction]
            parts = tuple(stack.pop() for _ in range(count))[::-1]
            stack.append(parts)
        elif instruction in _STEPS:
            step = _STEPS[instruction]
            step(self, argument)
        else:
            raise UnsafeFileError(f"the pickle instruction {instruction}, which no model needs")

    def since_mark(self) -> list[Any]:
        parts, self.stack = self.stack, self.below.pop()
        return parts

    def empty_set(self, _: Any) -> None:
        self.stack.append(Made(Named("builtins", "set"), ()))

    def frozenset(self, _: Any) -> None:
        parts = self.since_mark()
        self.stack.append(Made(Named("builtins", "frozenset"), (), elements=parts))

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def name(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self.stack.append(Named(module, name))

    def name_from_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise UnsafeFileError("a name that is not text")
        self.stack.append(Named(module, name))

    def new(self, _: Any) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        self.stack.append(Made(cls, arguments, is_new=True))

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, Named) and function.name in _SETS_STATE and isinstance(arguments[0], Made):
            arguments[0].state = arguments[1]
        self.stack.append(Made(function, arguments))

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if not isinstance(made, Made) or made.state is not None:
            raise UnsafeFileError("a state for something that is no new object")
        made.state = state

    def append(self, _: Any) -> None:
        self.extend([self.stack.pop()])

    def appends(self, _: Any) -> None:
        self.extend(self.since_mark())

    def extend(self, parts: list[Any]) -> None:
        whole = self.stack[-1]
        if not isinstance(whole, (list, Made)):
            raise UnsafeFileError("elements for something that is no list")
        (whole.elements if isinstance(whole, Made) else whole).extend(parts)

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_pairs([key, value])

    def set_items(self, _: Any) -> None:
        self.set_pairs(self.since_mark())

    def set_pairs(self, parts: list[Any]) -> None:
        whole = self.stack[-1]
        if not isinstance(whole, (dict, Made)):
            raise UnsafeFileError("items for something that is no dictionary")
        items = whole.items if isinstance(whole, Made) else whole
        for key, value in zip(parts[::2], parts[1::2], strict=True):
            # A tuple's hash walks all of it, and a few nested ones would take years.
            if not (key is None or isinstance(key, (str, int, float, bytes))):
                raise UnsafeFileError(f"a dictionary with a key of type {type(key).__name__}")
            items[key] = value

    def make_tuple(self, _: Any) -> None:
        parts = tuple(self.since_mark())
        self.stack.append(parts)

    def make_list(self, _: Any) -> None:
        parts = self.since_mark()
        self.stack.append(parts)

    def dictionary(self, _: Any) -> None:
        parts = self.since_mark()
        self.stack.append({})
        self.set_pairs(parts)

    def pop(self, _: Any) -> None:
        self.stack.pop()

    def remember(self, index: int) -> None:
        self.memory[index] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memory[len(self.memory)] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.stack.append(self.memory[index])

    def refer(self, _: Any) -> None:
        self.stack.append(Kept(self.stack.pop()))


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.new,
    "BUILD": _Machine.build,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    # Kept as lists: a set would take the hash of each element.
    "EMPTY_SET": _Machine.empty_set,
    "ADDITEMS": _Machine.appends,
    "FROZENSET": _Machine.frozenset,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "TUPLE": _Machine.make_tuple,
    "LIST": _Machine.make_list,
    "DICT": _Machine.dictionary,
    "POP": _Machine.pop,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.memoize,
    "BINPERSID": _Machine.refer,
}
