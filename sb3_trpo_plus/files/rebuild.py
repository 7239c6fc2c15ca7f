"""
From the tree of a pickle to objects, by lists: what may be named, and what may be made, of which arguments.

Nothing is imported by name and nothing of the file's is called. What is made is made by the functions below, which check each
part; random generators are left out, and spaces are remade by their own constructors.
"""

import collections
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common import buffers, policies, torch_layers, utils
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from sb3_trpo_plus.files.errors import UnsafeFileError
from sb3_trpo_plus.files.former_schedules import former_schedule, is_function, name_of_function
from sb3_trpo_plus.files.numbers import is_number
from sb3_trpo_plus.files.pickles import DEEPEST, Made, Named, names_in, read
from sb3_trpo_plus.files.words import one_line, shown

# Of all that is rebuilt of one file: a tree whose parts refer to each other can be far larger written out than in the file.
MOST_NODES = 500_000
MOST_BYTES = 2**31
LARGEST_DIMENSION = 2**31
# Of what a file needs, in one message.
MOST_TOLD = 5
MAIN = "__main__"

ACTIVATIONS = (
    "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "LogSoftmax",
    "Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softmax", "Softmin", "Softplus", "Softshrink",
    "Softsign", "Tanh", "Tanhshrink",
)  # fmt: skip
OPTIMISERS = (
    "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD",
)  # fmt: skip

POLICIES: tuple[type, ...] = (
    policies.ActorCriticPolicy,
    policies.ActorCriticCnnPolicy,
    policies.MultiInputActorCriticPolicy,
)
ROLLOUT_BUFFERS: tuple[type, ...] = (buffers.RolloutBuffer, buffers.DictRolloutBuffer)
EXTRACTORS: tuple[type, ...] = (
    torch_layers.BaseFeaturesExtractor,
    torch_layers.FlattenExtractor,
    torch_layers.NatureCNN,
    torch_layers.CombinedExtractor,
)
ACTIVATION_CLASSES: tuple[type, ...] = (*(getattr(th.nn, name) for name in ACTIVATIONS), th.nn.Identity)
OPTIMISER_CLASSES: tuple[type, ...] = (*(getattr(th.optim, name) for name in OPTIMISERS), RMSpropTFLike)


def path_of(named: Any) -> str:
    """The name under which pickle writes a class or a function."""
    return f"{named.__module__}.{named.__qualname__}"


#: What a file may name as a value: classes that a policy or an algorithm is told to use
NAMEABLE: dict[str, Any] = {
    path_of(cls): cls for cls in (*POLICIES, *ROLLOUT_BUFFERS, *EXTRACTORS, *ACTIVATION_CLASSES, *OPTIMISER_CLASSES)
}

Maker = Callable[["Rebuilding", Made], Any]


class NotListedError(UnsafeFileError):
    """
    A file needs what is neither on the lists nor the caller's.

    :param needs: in words, each
    """

    def __init__(self, *needs: str) -> None:
        super().__init__(", and ".join(needs))
        self.needs = needs


class LeftOut:
    """In the place of what is not kept, such as random generators."""


class Rebuilding:
    """
    The trees of one file that become objects, within limits for all of them together.

    :param allowed: classes and functions of the caller's that the file may name, make and call, beside those of this module;
        where the file says ``__main__``, which is whatever script its author ran, those of any module that have the name
    :param makers: further things that may be made, by the names under which pickle writes them
    """

    def __init__(self, allowed: Iterable[Any] = (), makers: Mapping[str, Maker] | None = None) -> None:
        self.allowed: dict[str, dict[int, Any]] = {}
        for one in allowed:
            for name in {one.__qualname__, one.__name__}:
                for module in {one.__module__, MAIN}:
                    self.allowed.setdefault(f"{module}.{name}", {})[id(one)] = one
        self.makers = {**MAKERS, **(makers or {})}
        self.made: dict[int, tuple[Made, Any]] = {}
        self.nodes = 0
        self.bytes = 0
        self.depth = 0

    def of(self, tree: Any) -> Any:
        """
        The object that a tree describes.

        :param tree: from :func:`~sb3_trpo_plus.files.pickles.read`
        :raises UnsafeFileError: it has a part that is not on the lists, or is too large
        """
        self.nodes += 1
        self.depth += 1
        if self.nodes > MOST_NODES or self.depth > DEEPEST:
            raise UnsafeFileError(f"more than {MOST_NODES:,} parts, or parts nested more than {DEEPEST} deep")
        try:
            return self._of(tree)
        finally:
            self.depth -= 1

    def _of(self, tree: Any) -> Any:
        if tree is None or isinstance(tree, (bool, int, float)):
            return tree
        if isinstance(tree, (str, bytes)):
            self.count(len(tree))
            return tree
        if isinstance(tree, list):
            return self._all(tree)
        if isinstance(tree, tuple):
            return tuple(self._all(tree))
        if isinstance(tree, dict):
            return dict(zip(tree, self._all(tree.values()), strict=True))
        if isinstance(tree, Named):
            return self._named(tree)
        if isinstance(tree, Made):
            return self._made_once(tree)
        raise UnsafeFileError("a reference to something outside of its pickle")

    def _all(self, parts: Iterable[Any]) -> list[Any]:
        """The objects; what several of them need is told at once."""
        found, needs = [], dict[str, None]()
        for part in parts:
            try:
                found.append(self.of(part))
            except NotListedError as error:
                needs.update(dict.fromkeys(error.needs))
                if len(needs) >= MOST_TOLD:
                    break
        if needs:
            raise NotListedError(*list(needs)[:MOST_TOLD])
        return found

    def _of_the_callers(self, path: str) -> Any:
        """The one class or function of the caller's that a file's name means; None if it is none, or not one alone."""
        found = list(self.allowed.get(path, {}).values())
        exact = [one for one in found if path in (path_of(one), f"{one.__module__}.{one.__name__}")] or found
        return exact[0] if len(exact) == 1 else None

    def count(self, size: int) -> None:
        """Bytes that are about to be copied."""
        self.bytes += size
        if self.bytes > MOST_BYTES:
            raise UnsafeFileError(f"arrays of more than {MOST_BYTES:,} bytes")

    def _made_once(self, made: Made) -> Any:
        """Arrays, spaces and the like that are referred to more than once are made once, as pickle does."""
        if id(made) not in self.made:
            # With the tree itself, so that its id stays its own.
            self.made[id(made)] = made, self._made(made)
        return self.made[id(made)][1]

    def _named(self, named: Named) -> Any:
        path = str(named)
        theirs = self._of_the_callers(path)
        if theirs is not None:
            return theirs
        if path in NAMEABLE:
            return NAMEABLE[path]
        raise NotListedError(f"{shown(named)}, which is not on the list of what a file may name")

    def _made(self, made: Made) -> Any:
        if is_function(made):
            return self._function(made)
        brought = class_brought_along(made)
        if brought is not None:
            theirs = self._of_the_callers(brought)
            if theirs is not None:
                return theirs
            raise NotListedError(f"{one_line(brought)}, a class that the file brings its own code for")
        path = str(made.function) if isinstance(made.function, Named) else class_brought_along(made.function) or ""
        theirs = self._of_the_callers(path)
        if theirs is not None:
            return self._instance(theirs, made)
        if path in self.makers:
            try:
                return self.makers[path](self, made)
            except (
                ValueError,
                TypeError,
                LookupError,
                AttributeError,
                ArithmeticError,
                AssertionError,
                RuntimeError,
            ) as error:
                if isinstance(error, (UnsafeFileError, RecursionError)):
                    raise
                raise UnsafeFileError(f"a malformed {path} ({type(error).__name__})") from error
        words = one_line(path) or shown(made.function)
        raise NotListedError(f"a call of {words}, which is not on the list of what may be made")

    def _function(self, made: Made) -> Any:
        schedule = former_schedule(made)
        if schedule is not None:
            return schedule
        name = name_of_function(made)
        theirs = self._of_the_callers(name)
        if theirs is not None:
            return theirs
        raise NotListedError(f"the function {one_line(name)}, which the file brings its own code for")

    def _instance(self, allowed: Any, made: Made) -> Any:
        """An instance of a class that the caller trusts, as pickle would make it."""
        arguments = self.of(made.arguments)
        new = allowed.__new__(allowed, *arguments) if made.is_new else allowed(*arguments)
        state = self.of(made.state)
        if hasattr(new, "__setstate__") and state is not None:
            new.__setstate__(state)
        elif state is not None:
            vars(new).update(state)
        for element in made.elements:
            new.append(self.of(element))
        for key, value in made.items.items():
            new[key] = self.of(value)
        return new

    def state(self, made: Made, *needed: str, **optional: Any) -> dict[str, Any]:
        """Those of an object's attributes that are asked for, with the values of the optional ones where it has none."""
        if not isinstance(made.state, dict) or made.elements or made.items:
            raise UnsafeFileError(f"a {shown(made.function)} whose attributes are not a dictionary")
        return {
            **{name: self.of(made.state[name]) for name in needed},
            **{name: self.of(made.state.get(name, value)) for name, value in optional.items()},
        }


def rebuilt(pickled: bytes, allowed: Iterable[Any] = ()) -> Any:
    """
    The object in a pickle.

    :param pickled: of a protocol that Python 3 writes by default
    :param allowed: classes and functions of the caller's that the file may name, make and call
    :raises UnsafeFileError: it is no whole pickle, or has a part that is not on the lists
    """
    return Rebuilding(allowed).of(read(pickled))


# What cloudpickle calls to make a class again, and where the members with its module are among the arguments.
_MAKES_CLASSES = {
    Named("cloudpickle.cloudpickle", "_make_skeleton_class"): 3,
    Named("cloudpickle.cloudpickle", "_make_skeleton_enum"): 3,
}


def class_brought_along(made: Any) -> str | None:
    """The name of a class that cloudpickle wrote with its code; None for anything else."""
    if not (isinstance(made, Made) and isinstance(made.function, Named) and made.function in _MAKES_CLASSES):
        return None
    arguments = made.arguments
    if made.function.name == "_make_skeleton_enum" and isinstance(arguments, tuple) and len(arguments) > 4:
        parts = arguments[4], arguments[1]
    elif isinstance(arguments, tuple) and len(arguments) > 3 and isinstance(arguments[3], dict):
        parts = arguments[3].get("__module__"), arguments[1]
    else:
        parts = None, None
    return ".".join(parts) if all(isinstance(part, str) for part in parts) else "a class without a name"


def names_told(tree: Any) -> list[str]:
    """
    For people: all that a pickle names, and the classes and functions for which it brings the code, each once.

    :param tree: from :func:`~sb3_trpo_plus.files.pickles.read`
    """
    found = set()
    for node in names_in(tree):
        if isinstance(node, Named):
            found.add(one_line(str(node)))
        else:
            brought = name_of_function(node) if is_function(node) else class_brought_along(node)
            found |= {one_line(f"{brought}, with its code")} if brought else set()
    return sorted(found)


def _numbers(text: Any) -> np.dtype[Any]:
    """The dtype of a text such as f4: numbers and bools, no objects, text, dates or records."""
    if not (isinstance(text, str) and re.fullmatch(r"[<>|=]?([iu][1248]|f[248]|b1|\?)", text)):
        raise UnsafeFileError(f"arrays of the dtype {shown(text)}")
    return np.dtype(text)


def _dtype(rebuilding: Rebuilding, made: Made) -> np.dtype[Any]:
    text, *_ = made.arguments
    dtype = _numbers(text)
    if made.state is not None:
        _, order, *rest = made.state
        if order not in ("<", ">", "|", "=") or any(part is not None for part in rest[:3]):
            raise UnsafeFileError("a dtype with fields")
        dtype = dtype if order == "|" else dtype.newbyteorder(order)
    return dtype


def _filled(rebuilding: Rebuilding, raw: Any, dtype: Any, shape: Any, order: str) -> npt.NDArray[Any]:
    if not (isinstance(raw, bytes) and isinstance(dtype, np.dtype) and isinstance(shape, tuple) and order in ("C", "F")):
        raise UnsafeFileError("an array that is not made of bytes, a dtype and a shape")
    if len(shape) > 16 or not all(type(size) is int and 0 <= size <= LARGEST_DIMENSION for size in shape):
        raise UnsafeFileError(f"an array of the shape {shown(shape)}")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise UnsafeFileError(f"an array of shape {shape} and dtype {dtype} with {len(raw)} bytes")
    rebuilding.count(len(raw))
    elements = np.frombuffer(raw, dtype)
    return np.array(elements.reshape(shape, order="F") if order == "F" else elements.reshape(shape))


def _array(rebuilding: Rebuilding, made: Made) -> npt.NDArray[Any]:
    _, shape, dtype, is_fortran, raw = made.state
    return _filled(rebuilding, rebuilding.of(raw), rebuilding.of(dtype), shape, "F" if is_fortran else "C")


def _array_of_buffer(rebuilding: Rebuilding, made: Made) -> npt.NDArray[Any]:
    raw, dtype, shape, order, *_ = made.arguments
    return _filled(rebuilding, raw, rebuilding.of(dtype), shape, order)


def _scalar(rebuilding: Rebuilding, made: Made) -> Any:
    dtype, raw = made.arguments
    return _filled(rebuilding, rebuilding.of(raw), rebuilding.of(dtype), (), "C")[()]


def _encoded(rebuilding: Rebuilding, made: Made) -> bytes:
    """Bytes in the pickles of protocol 2, which has none."""
    text, encoding = rebuilding.of(made.arguments)
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafeFileError("text that is not encoded as bytes are")
    return text.encode("latin-1")


def _set(rebuilding: Rebuilding, made: Made) -> set[Any]:
    elements = [rebuilding.of(element) for element in made.elements]
    if made.arguments or not all(isinstance(element, (str, int, float, bytes, type(None))) for element in elements):
        raise UnsafeFileError("a set of something else than numbers and text")
    return set(elements)


def _ordered(rebuilding: Rebuilding, made: Made) -> Any:
    pairs = rebuilding.of(made.arguments[0]) if made.arguments else []
    ordered: dict[Any, Any] = collections.OrderedDict()
    for key, value in pairs:
        if not isinstance(key, (str, int)):
            raise UnsafeFileError("an OrderedDict with keys that are neither text nor integers")
        ordered[key] = value
    for key, value in made.items.items():
        ordered[key] = rebuilding.of(value)
    return ordered


def _deque(rebuilding: Rebuilding, made: Made) -> Any:
    first, *limit = rebuilding.of(made.arguments) if made.arguments else ((),)
    most = limit[0] if limit else None
    if not isinstance(first, (list, tuple)) or not (most is None or (type(most) is int and most >= 0)):
        raise UnsafeFileError("a deque whose length is not a number")
    return collections.deque([*first, *(rebuilding.of(element) for element in made.elements)], maxlen=most)


def _left_out(rebuilding: Rebuilding, made: Made) -> LeftOut:
    return LeftOut()


def _bounds_of_box(rebuilding: Rebuilding, made: Made) -> spaces.Space[Any]:
    state = rebuilding.state(made, "low", "high", dtype=None)
    low, high = state["low"], state["high"]
    if not (isinstance(low, np.ndarray) and isinstance(high, np.ndarray) and low.shape == high.shape):
        raise UnsafeFileError("a Box whose bounds are not two arrays of one shape")
    if np.isnan(low).any() or np.isnan(high).any() or (low > high).any():
        raise UnsafeFileError("a Box whose bounds are not bounds")
    return spaces.Box(low, high, dtype=_numbers(np.dtype(state["dtype"] or low.dtype).str).type)


def _whole(number: Any, least: int) -> int:
    if not isinstance(number, (int, np.integer)) or isinstance(number, bool) or not least <= number <= LARGEST_DIMENSION:
        raise UnsafeFileError(f"a space with {shown(number)} for a size")
    return int(number)


def _discrete(rebuilding: Rebuilding, made: Made) -> spaces.Space[Any]:
    state = rebuilding.state(made, "n", start=0, dtype=None)
    dtype = _numbers(np.dtype(state["dtype"] or np.int64).str)
    if dtype.kind not in "iu":
        raise UnsafeFileError(f"a Discrete of {dtype}")
    return spaces.Discrete(_whole(state["n"], 1), start=_whole(state["start"], -LARGEST_DIMENSION), dtype=dtype.type)


def _multi_discrete(rebuilding: Rebuilding, made: Made) -> spaces.Space[Any]:
    state = rebuilding.state(made, "nvec", start=None)
    sizes, start = state["nvec"], state["start"]
    if not (
        isinstance(sizes, np.ndarray) and sizes.dtype.kind in "iu" and sizes.min() > 0 and sizes.max() <= LARGEST_DIMENSION
    ):
        raise UnsafeFileError("a MultiDiscrete whose sizes are not positive integers")
    if start is not None and not (isinstance(start, np.ndarray) and start.dtype.kind in "iu" and start.shape == sizes.shape):
        raise UnsafeFileError("a MultiDiscrete whose start is not an array of integers")
    return spaces.MultiDiscrete(sizes, dtype=sizes.dtype.type, start=start)


def _multi_binary(rebuilding: Rebuilding, made: Made) -> spaces.Space[Any]:
    n = rebuilding.state(made, "n")["n"]
    if isinstance(n, (tuple, list, np.ndarray)):
        shape = [_whole(size, 1) for size in n]
        return spaces.MultiBinary([_whole(math.prod(shape), 1) and size for size in shape])
    return spaces.MultiBinary(_whole(n, 1))


def _dict_space(rebuilding: Rebuilding, made: Made) -> spaces.Space[Any]:
    parts = rebuilding.state(made, "spaces")["spaces"]
    if not all(isinstance(key, str) and isinstance(part, spaces.Space) for key, part in parts.items()):
        raise UnsafeFileError("a Dict space with something else than spaces by names")
    # A plain dict would be sorted by Gymnasium, and an OrderedDict is not.
    return spaces.Dict(collections.OrderedDict(parts))


def _tuple_space(rebuilding: Rebuilding, made: Made) -> spaces.Space[Any]:
    parts = rebuilding.state(made, "spaces")["spaces"]
    if not all(isinstance(part, spaces.Space) for part in parts):
        raise UnsafeFileError("a Tuple space with something else than spaces")
    return spaces.Tuple(parts)


def number(value: Any) -> float:
    """A finite Python float; raises UnsafeFileError for anything else."""
    if not is_number(value):
        raise UnsafeFileError(f"{shown(value)} where a finite number belongs")
    return float(value)


def _constant(rebuilding: Rebuilding, made: Made) -> Any:
    return utils.ConstantSchedule(number(rebuilding.state(made, "val")["val"]))


def _linear(rebuilding: Rebuilding, made: Made) -> Any:
    state = rebuilding.state(made, "start", "end", "end_fraction")
    fraction = number(state["end_fraction"])
    if fraction <= 0:
        raise UnsafeFileError(f"a LinearSchedule with an end_fraction of {fraction}")
    return utils.LinearSchedule(number(state["start"]), number(state["end"]), fraction)


def _linear_of_the_zoo(rebuilding: Rebuilding, made: Made) -> Any:
    return utils.LinearSchedule(number(rebuilding.state(made, "initial_value")["initial_value"]), 0.0, 1.0)


def _float_schedule(rebuilding: Rebuilding, made: Made) -> Any:
    inner = rebuilding.state(made, "value_schedule")["value_schedule"]
    if not is_schedule(inner):
        raise UnsafeFileError("a FloatSchedule of something else than a schedule")
    return utils.FloatSchedule(inner)


def _mean_and_std(rebuilding: Rebuilding, made: Made) -> RunningMeanStd:
    state = rebuilding.state(made, "mean", "var", "count")
    statistics = RunningMeanStd()
    # Those of scalars are scalars, as arithmetic makes them.
    mean, var = np.asarray(state["mean"], np.float64)[()], np.asarray(state["var"], np.float64)[()]
    count = number(state["count"])
    if mean.shape != var.shape or not (np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all() and count >= 0):
        raise UnsafeFileError("running statistics that are not finite, or have a negative variance or count")
    statistics.mean, statistics.var, statistics.count = mean, var, count
    return statistics


def is_schedule(value: Any) -> bool:
    """Whether a rebuilt value is one of the schedules."""
    return type(value) in (utils.ConstantSchedule, utils.LinearSchedule, utils.FloatSchedule)


def _everywhere(modules: Iterable[str], name: str, maker: Maker) -> dict[str, Maker]:
    return {f"{module}.{name}": maker for module in modules}


_CORES = ("numpy.core", "numpy._core")
_MADE_OF_SPACES = {
    "box.Box": _bounds_of_box, "discrete.Discrete": _discrete, "multi_discrete.MultiDiscrete": _multi_discrete,
    "multi_binary.MultiBinary": _multi_binary, "dict.Dict": _dict_space, "tuple.Tuple": _tuple_space,
}  # fmt: skip

#: What may be made, by the name under which pickle writes it
MAKERS: dict[str, Maker] = {
    "numpy.dtype": _dtype,
    **_everywhere(_CORES, "multiarray._reconstruct", _array),
    **_everywhere(_CORES, "multiarray.scalar", _scalar),
    **_everywhere(_CORES, "numeric._frombuffer", _array_of_buffer),
    **_everywhere(("numpy.random._pickle",), "__generator_ctor", _left_out),
    **_everywhere(("numpy.random._pickle",), "__randomstate_ctor", _left_out),
    "_codecs.encode": _encoded,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "collections.OrderedDict": _ordered,
    "collections.deque": _deque,
    **{
        f"{package}.spaces.{name}": maker for package in ("gym", "gymnasium") for name, maker in _MADE_OF_SPACES.items()
    },
    path_of(utils.ConstantSchedule): _constant,
    path_of(utils.LinearSchedule): _linear,
    path_of(utils.FloatSchedule): _float_schedule,
    "rl_zoo3.utils.SimpleLinearSchedule": _linear_of_the_zoo,
    path_of(RunningMeanStd): _mean_and_std,
}  # fmt: skip
