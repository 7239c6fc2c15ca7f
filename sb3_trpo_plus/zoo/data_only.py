"""RL Zoo's files as data: YAML with no objects but OrderedDict, expressions with no calls but ``dict``, wrappers by a list."""

import ast
import collections
import operator
import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from sb3_trpo_plus.files.archive import DAMAGES, check_announced
from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.rebuild import ACTIVATION_CLASSES, EXTRACTORS, NAMEABLE, OPTIMISER_CLASSES, ROLLOUT_BUFFERS
from sb3_trpo_plus.files.words import one_line

# Of a YAML file: RL Zoo's largest has 13 KB and a thousand events.
MOST_BYTES = 2**17
MOST_EVENTS = 20_000
# With each alias written out.
MOST_PARTS = 100_000
MOST_CHARACTERS = 2**20
MOST_DEPTH = 50
LONGEST_NUMBER = 100
# What a file may ask for: each is memory, or processes.
MOST = {"frame_stack": 64, "n_envs": 4096}
MOST_OF_WRAPPERS = {"n_stack": 64, "stack_size": 64, "horizon": 4096}
#: The way on, for messages of the commands
TRUST = "--trust runs whatever the files of this command ask for, if you trust those who made them"

# Those of the libraries that do nothing but change what an agent sees, does and earns: no files, no windows, no functions.
WRAPPERS = {
    **dict.fromkeys(
        (
            "AddWhiteNoise", "AtariPreprocessing", "ClipAction", "ClipReward", "DelayObservation", "DiscretizeAction",
            "DiscretizeObservation", "DtypeObservation", "FilterObservation", "FlattenObservation", "FrameStackObservation",
            "GrayscaleObservation", "MaxAndSkipObservation", "NormalizeObservation", "NormalizeReward", "RepeatAction",
            "RescaleAction", "RescaleObservation", "ReshapeObservation", "ResizeObservation", "StickyAction",
            "TimeAwareObservation", "TimeLimit",
        ),
        ("gymnasium.wrappers",),
    ),
    **dict.fromkeys(
        (
            "AtariWrapper", "ClipRewardEnv", "EpisodicLifeEnv", "FireResetEnv", "MaxAndSkipEnv", "NoopResetEnv",
            "StickyActionEnv", "WarpFrame",
        ),
        ("stable_baselines3.common.atari_wrappers",),
    ),
    **dict.fromkeys(
        (
            "ActionNoiseWrapper", "ActionSmoothingWrapper", "DelayedRewardWrapper", "FrameSkip", "HistoryWrapper",
            "HistoryWrapperObsDict", "MaskVelocityWrapper", "TruncatedOnSuccessWrapper", "YAMLCompatResizeObservation",
        ),
        ("rl_zoo3.wrappers",),
    ),
    "TimeFeatureWrapper": ("sb3_contrib.common.wrappers", "sb3_contrib.common.wrappers.time_feature", "rl_zoo3.wrappers"),
    "flatten_dict_observations": ("rl_zoo3.utils",),
    **dict.fromkeys(("unit_actions", "with_channel"), ("sb3_trpo_plus.wrappers",)),
    **dict.fromkeys(("VecFrameStack", "VecTransposeImage"), ("stable_baselines3.common.vec_env",)),
}  # fmt: skip
# Names of former years, by which a folder `gym` or `utils` of the current folder would be imported.
FORMER = {"gym.wrappers": "gymnasium.wrappers", "utils.wrappers": "rl_zoo3.wrappers"}
CALLBACKS = {"rl_zoo3.callbacks.RawStatisticsCallback"}

#: What an expression may name: RL Zoo's names for what policies are told to use
NAMES: dict[str, Any] = {
    **{f"{prefix}.{cls.__name__}": cls for prefix in ("nn", "th.nn", "torch.nn") for cls in ACTIVATION_CLASSES},
    **{f"{prefix}.{cls.__name__}": cls for prefix in ("th.optim", "torch.optim") for cls in OPTIMISER_CLASSES},
    **{cls.__name__: cls for cls in (*EXTRACTORS, *ROLLOUT_BUFFERS, RMSpropTFLike)},
}


class DataLoader(yaml.SafeLoader):
    """YAML's plain values, and the two tags that RL Zoo writes: an OrderedDict and a tuple of those."""


def _ordered(loader: DataLoader, node: yaml.SequenceNode) -> Any:
    (pairs,) = loader.construct_sequence(node, deep=True)
    if not all(isinstance(key, str) for key, _ in pairs):
        raise UnsafeFileError("an OrderedDict with a key that is no text")
    return collections.OrderedDict(pairs)


def _class(loader: DataLoader, name: str, node: yaml.Node) -> Any:
    if name not in NAMEABLE:
        raise yaml.constructor.ConstructorError(None, None, f"the name {name[:100]!r}", node.start_mark)
    return NAMEABLE[name]


def _tuple(loader: DataLoader, node: yaml.SequenceNode) -> Any:
    return tuple(loader.construct_sequence(node, deep=True))


def _number_by(construct: Callable[[Any, yaml.ScalarNode], float]) -> Callable[[DataLoader, yaml.ScalarNode], float]:
    def number(loader: DataLoader, node: yaml.ScalarNode) -> float:
        text = str(node.value)
        # 1:59:59 is a number in base 60, of any length, and each digit more takes longer.
        if ":" in text or len(text) > LONGEST_NUMBER:
            raise UnsafeFileError(f"a number with a colon, or of more than {LONGEST_NUMBER} characters: {text:.50}")
        return construct(loader, node)

    return number


DataLoader.add_constructor("tag:yaml.org,2002:int", _number_by(yaml.SafeLoader.construct_yaml_int))
DataLoader.add_constructor("tag:yaml.org,2002:float", _number_by(yaml.SafeLoader.construct_yaml_float))
DataLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered)
DataLoader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)
# What RL Zoo writes of -params policy_kwargs:"dict(activation_fn=nn.ReLU)", say: a class that model files may name, too.
DataLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", _class)


def read_yaml(path: Path) -> Any:
    """
    Read a YAML file of RL Zoo's.

    :param path: of ``config.yml``, ``args.yml`` or a hyperparameter file
    :return: plain values
    :raises UnsafeFileError: it has other objects, or is far larger written out than in the file
    :raises ModelFileError: it is no YAML
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UnsafeFileError(f"more than {MOST_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
        _check_size(text)
        # The loader itself, since the commands put another function in the place of yaml.load.
        loader = DataLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.constructor.ConstructorError as error:
        raise UnsafeFileError(
            f"The file {str(path)!r} is refused: it has an object, not data ({error.problem}). {TRUST}"
        ) from error
    except UnsafeFileError as error:
        raise UnsafeFileError(f"The file {str(path)!r} is refused: it has {_first_line(error)}") from error
    # Beyond YAML's own: what its constructors raise for an empty number, say.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ModelFileError(f"The file {str(path)!r} is no YAML file of RL Zoo's: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return one_line(" ".join(str(error).split()), 300)


@dataclass
class _Part:
    """A value of a YAML file, as large as it is with all aliases written out."""

    anchor: str | None = None
    is_mapping: bool = False
    children: int = 0
    parts: int = 1
    characters: int = 0
    depth: int = 0

    def take(self, part: "_Part") -> None:
        self.children += 1
        self.parts += part.parts
        self.characters += part.characters
        self.depth = max(self.depth, part.depth + 1)
        if self.parts > MOST_PARTS or self.characters > MOST_CHARACTERS or self.depth > MOST_DEPTH:
            raise UnsafeFileError(
                f"more than {MOST_PARTS:,} parts, or {MOST_CHARACTERS:,} characters, or parts nested more than {MOST_DEPTH} "
                "deep, with its aliases written out"
            )


def _check_size(text: str) -> None:
    """Follow what YAML's parser finds, and raise where it is too much, before any value is made."""
    anchored: dict[str, _Part] = {}
    unfinished = [_Part()]
    for number, event in enumerate(yaml.parse(text, Loader=DataLoader)):
        if number > MOST_EVENTS:
            raise UnsafeFileError(f"more than {MOST_EVENTS:,} parts")
        around = unfinished[-1]
        if not isinstance(event, (yaml.NodeEvent, yaml.CollectionEndEvent)):
            continue
        is_key = isinstance(event, yaml.NodeEvent) and around.is_mapping and around.children % 2 == 0
        if is_key and not isinstance(event, yaml.ScalarEvent):
            raise UnsafeFileError("a key that is neither a text nor a number")
        if isinstance(event, yaml.CollectionStartEvent):
            unfinished.append(_Part(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            if len(unfinished) > MOST_DEPTH + 1:
                raise UnsafeFileError(f"parts nested more than {MOST_DEPTH} deep")
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchored:
                raise UnsafeFileError("an alias of something that is not complete before it")
            part = anchored[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            part = _Part(event.anchor, characters=len(event.value))
        else:
            part = unfinished.pop()
        if part.anchor is not None:
            anchored[part.anchor] = part
        unfinished[-1].take(part)


def check_zip(path: Path) -> None:
    """
    Check the sizes and names that a zip announces, before anything of it is read or extracted.

    :param path: of the zip
    :raises UnsafeFileError: as :func:`~sb3_trpo_plus.files.archive.check_announced`, or a member would leave the folder
    :raises ModelFileError: it is no whole zip
    """
    whose = f"The file {str(path)!r}"
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except DAMAGES as error:
        raise ModelFileError(f"{whose} is not a whole zip ({_first_line(error)}): get it again") from error
    try:
        check_announced(infos)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{whose} is refused: {_first_line(error)}") from error
    for name in (info.filename for info in infos):
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in name:
            raise UnsafeFileError(f"{whose} is refused: its member {name[:100]!r} is outside of the folder")


_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def expression(text: str, *_: Any) -> Any:
    """
    The value of an expression such as ``dict(net_arch=[64, 64], activation_fn=nn.ReLU)``, which RL Zoo evaluates as Python.

    :param text: literals, ``dict(...)``, sums and products of numbers, and the names in ``NAMES``
    :raises UnsafeFileError: it has something else
    """
    try:
        if len(text) > 10_000:
            raise UnsafeFileError("an expression of more than 10,000 characters")
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError, ZeroDivisionError, OverflowError) as error:
        words = error if isinstance(error, UnsafeFileError) else f"is no expression ({error})"
        raise UnsafeFileError(f"The hyperparameter {text[:200]!r} is refused: it {words}. {TRUST}") from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, (bool, int, float, str))):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        parts = [_value(part) for part in node.elts]
        return parts if isinstance(node, ast.List) else tuple(parts)
    if isinstance(node, ast.Dict):
        keys = [_value(key) if key is not None else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise UnsafeFileError("has a dictionary with keys that are not text")
        return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.Call):
        return _call(node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        return -_number(node.operand) if isinstance(node.op, ast.USub) else _number(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_number(node.left), _number(node.right))
    name = ast.unparse(node)
    if isinstance(node, (ast.Attribute, ast.Name)) and name in NAMES:
        return NAMES[name]
    raise UnsafeFileError(f"has {name[:100]!r}, which is neither data nor one of the names that policies use")


def _call(node: ast.Call) -> Any:
    if isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        if any(keyword.arg is None for keyword in node.keywords):
            raise UnsafeFileError("unpacks a dictionary")
        return {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    raise UnsafeFileError(f"calls {ast.unparse(node.func)[:100]!r}; only dict(name=value) is data")


def _number(node: ast.expr) -> float:
    value = _value(node)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UnsafeFileError("calculates with something else than numbers")
    return value


def checked(hyperparams: Mapping[str, Any], packages: Collection[str], whose: str) -> dict[str, Any]:
    """
    Check what RL Zoo would import because a file names it (wrappers, callbacks, the policy), how much of something the file
    asks for, and the arguments of the environment.

    :param hyperparams: as the file has them
    :param packages: names of modules that the user gave, whose wrappers and policies are allowed too
    :param whose: words for the file
    :return: the same, where wrappers with names of former years have those of today
    :raises UnsafeFileError: it names something that is neither listed nor in those packages, or asks for too much
    """
    current = dict(hyperparams)
    for key in ("env_wrapper", "vec_env_wrapper", "callback"):
        if current.get(key) is None:
            continue
        parts = current[key] if isinstance(current[key], list) else [current[key]]
        parts = [_with_name_of_today(part, packages) for part in parts]
        for name, arguments in map(_name_and_arguments, parts):
            module, _, last = name.rpartition(".")
            known = name in CALLBACKS if key == "callback" else module in WRAPPERS.get(last, ())
            if not known and not _is_in(name, packages):
                raise UnsafeFileError(f"{whose} is refused: its {key} is {name[:100]!r}, which RL Zoo would import. {_WAYS}")
            check_amounts(arguments, MOST_OF_WRAPPERS, whose)
        current[key] = parts if isinstance(current[key], list) else parts[0]
    policy = current.get("policy")
    if policy is not None and not (isinstance(policy, str) and ("." not in policy or _is_in(policy, packages))):
        raise UnsafeFileError(f"{whose} is refused: its policy is {policy!r:.100}, which RL Zoo would import. {_WAYS}")
    check_amounts(current, MOST, whose)
    check_env_kwargs(current.get("env_kwargs"), whose)
    return current


def check_amounts(settings: Any, most: Mapping[str, int], whose: str) -> None:
    """
    Check how much of something a file asks for.

    :param settings: by name; anything else than a mapping is left to its reader
    :param most: what each of these names may have
    :param whose: words for the file
    :raises UnsafeFileError: one has more, or is no number
    """
    for name in most if isinstance(settings, Mapping) else ():
        value = settings.get(name)
        if value is not None and not (isinstance(value, (int, float)) and value <= most[name]):
            raise UnsafeFileError(f"{whose} is refused: its {name} is {value!r:.50}, not a number up to {most[name]}. {TRUST}")


def check_env_kwargs(env_kwargs: Any, whose: str) -> None:
    """
    Check that the arguments of an environment that a file gives are no paths, which the environment might read.

    :param env_kwargs: plain values
    :param whose: words for the file
    :raises UnsafeFileError: a text within is the name of a file, or has a slash or backslash
    """
    for text in _texts(env_kwargs):
        if "/" in text or "\\" in text or os.path.isfile(text):
            raise UnsafeFileError(
                f"{whose} is refused: its env_kwargs have {text[:100]!r}, a path that the environment might read. {TRUST}"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, (str, bytes)):
        yield value if isinstance(value, str) else os.fsdecode(value)
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _texts(pair)
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            yield from _texts(part)


_WAYS = f"--gym-packages MODULE allows what is in a module of yours; {TRUST}"


def _is_in(name: str, packages: Collection[str]) -> bool:
    return any(name.startswith(f"{package}.") for package in packages)


def _name_and_arguments(part: Any) -> tuple[str, Any]:
    """Of a wrapper or a callback, which RL Zoo's files write with or without arguments."""
    name, arguments = next(iter(part.items()), ("", None)) if isinstance(part, dict) else (part, None)
    return str(name), arguments


def _with_name_of_today(part: Any, packages: Collection[str]) -> Any:
    name, arguments = _name_and_arguments(part)
    module, _, last = name.rpartition(".")
    if module not in FORMER or _is_in(name, packages):
        return part
    name = f"{FORMER[module]}.{last}"
    return {name: arguments} if isinstance(part, dict) else name
