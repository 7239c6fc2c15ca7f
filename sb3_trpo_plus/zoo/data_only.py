"""RL Zoo's files as data: YAML with no objects but OrderedDict, expressions with no calls but ``dict``, wrappers by a list."""

import ast
import collections
import operator
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.rebuild import ACTIVATION_CLASSES, EXTRACTORS, OPTIMISER_CLASSES, ROLLOUT_BUFFERS

MOST_CHARACTERS = 2**20
MOST_NODES = 100_000
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
        ("gymnasium.wrappers", "gym.wrappers"),
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
        ("rl_zoo3.wrappers", "utils.wrappers"),
    ),
    "TimeFeatureWrapper": ("sb3_contrib.common.wrappers", "sb3_contrib.common.wrappers.time_feature", "rl_zoo3.wrappers"),
    "flatten_dict_observations": ("rl_zoo3.utils",),
    **dict.fromkeys(("unit_actions", "with_channel"), ("sb3_trpo_plus.wrappers",)),
    **dict.fromkeys(("VecFrameStack", "VecTransposeImage"), ("stable_baselines3.common.vec_env",)),
}  # fmt: skip
CALLBACKS = {"rl_zoo3.callbacks.RawStatisticsCallback"}

#: What an expression may name: RL Zoo's names for what policies are told to use
NAMES: dict[str, Any] = {
    **{f"{prefix}.{cls.__name__}": cls for prefix in ("nn", "th.nn", "torch.nn") for cls in ACTIVATION_CLASSES},
    **{f"{prefix}.{cls.__name__}": cls for prefix in ("th.optim", "torch.optim") for cls in OPTIMISER_CLASSES},
    **{cls.__name__: cls for cls in (*EXTRACTORS, *ROLLOUT_BUFFERS, RMSpropTFLike)},
}


class DataLoader(yaml.SafeLoader):
    """YAML's plain values, and the two tags that RL Zoo writes: an OrderedDict and a tuple of those."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """As YAML's, within a limit: merging can double a mapping with each line."""
        super().flatten_mapping(node)
        if len(node.value) > MOST_NODES:
            raise UnsafeFileError(f"a mapping of more than {MOST_NODES:,} parts")


def _ordered(loader: DataLoader, node: yaml.SequenceNode) -> Any:
    (pairs,) = loader.construct_sequence(node, deep=True)
    return collections.OrderedDict((str(key), value) for key, value in pairs)


def _tuple(loader: DataLoader, node: yaml.SequenceNode) -> Any:
    return tuple(loader.construct_sequence(node, deep=True))


DataLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered)
DataLoader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def read_yaml(path: Path) -> Any:
    """
    Read a YAML file of RL Zoo's.

    :param path: of ``config.yml``, ``args.yml`` or a hyperparameter file
    :return: plain values
    :raises UnsafeFileError: it has other objects, or is far larger written out than in the file
    :raises ModelFileError: it is no YAML
    """
    try:
        if path.stat().st_size > MOST_CHARACTERS:
            raise UnsafeFileError(f"more than {MOST_CHARACTERS:,} characters")
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=DataLoader)
        _count(loaded, [0], 0)
    except yaml.constructor.ConstructorError as error:
        raise UnsafeFileError(
            f"The file {str(path)!r} is refused: it has an object, not data ({error.problem}). {TRUST}"
        ) from error
    except (UnsafeFileError, RecursionError) as error:
        raise UnsafeFileError(f"The file {str(path)!r} is refused: it has {_first_line(error)}") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ModelFileError(f"The file {str(path)!r} is no YAML file of RL Zoo's: {_first_line(error)}") from error
    return loaded


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _count(value: Any, nodes: list[int], depth: int) -> None:
    nodes[0] += 1
    if nodes[0] > MOST_NODES or depth > 50:
        raise UnsafeFileError(f"more than {MOST_NODES:,} parts, or parts nested more than 50 deep")
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        for part in value:
            _count(part, nodes, depth + 1)


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


def check_names(hyperparams: Mapping[str, Any], packages: Collection[str], whose: str) -> None:
    """
    Check what RL Zoo would import because a file names it: wrappers, callbacks and the policy.

    :param hyperparams: as the file has them
    :param packages: names of modules that the user gave, whose wrappers and policies are allowed too
    :param whose: words for the file
    :raises UnsafeFileError: it names something that is neither listed nor in those packages
    """
    for key in ("env_wrapper", "vec_env_wrapper", "callback"):
        for name in _names(hyperparams.get(key)):
            module, _, last = name.rpartition(".")
            known = name in CALLBACKS if key == "callback" else module in WRAPPERS.get(last, ())
            if not known and not _is_in(name, packages):
                raise UnsafeFileError(f"{whose} is refused: its {key} is {name[:100]!r}, which RL Zoo would import. {_WAYS}")
    policy = hyperparams.get("policy")
    if policy is not None and not (isinstance(policy, str) and ("." not in policy or _is_in(policy, packages))):
        raise UnsafeFileError(f"{whose} is refused: its policy is {policy!r:.100}, which RL Zoo would import. {_WAYS}")


_WAYS = f"--gym-packages MODULE allows what is in a module of yours; {TRUST}"


def _is_in(name: str, packages: Collection[str]) -> bool:
    return any(name.startswith(f"{package}.") for package in packages)


def _names(value: Any) -> list[str]:
    """The names in RL Zoo's ways of writing one or several of them, with or without arguments."""
    if value is None:
        return []
    parts = value if isinstance(value, list) else [value]
    return [str(next(iter(part), "")) if isinstance(part, dict) else str(part) for part in parts]
