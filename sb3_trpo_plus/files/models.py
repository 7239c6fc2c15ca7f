"""
Reading saved models as data: this package's, sb3-contrib's, and those saved with Gym, the predecessor of Gymnasium.

SB3 saves a model as a zip with a JSON member ``data``, in which objects that JSON can't represent are base64 pickles, and with
tensors in ``.pth`` members. All are read here without running anything of the file's, checked, and passed on to SB3's loader
as objects and a clean archive in memory: SB3 unpickles nothing.
"""

import base64
import inspect
import io
import json
import warnings
import zipfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_trpo_plus.files.archive import ModelFile, name_of, read_model_archive
from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.files.fields import KINDS, Allowed, check_field, check_observations, check_sizes
from sb3_trpo_plus.files.gym_years import check_trust, unpickle
from sb3_trpo_plus.files.own import is_own
from sb3_trpo_plus.files.pickles import read
from sb3_trpo_plus.files.rebuild import MOST_NODES, Rebuilding, path_of
from sb3_trpo_plus.files.weights import check_weights, read_state_dicts, state_in
from sb3_trpo_plus.files.words import one_line, shown

# Which algorithm saved a file: the one of the first name found in its data. Old files of NPG also have TRPO's attributes.
TOLD_BY = {
    "n_rollout_states": "VineTRPO", "step_size": "NPG", "penalty": "PPOPenalty", "line_search_max_iter": "TRPO",
    "clip_range": "PPO", "target_entropy": "SAC", "target_policy_noise": "TD3", "exploration_rate": "DQN",
}  # fmt: skip
# Attributes that no file decides: where learn() writes, what it runs on, and what SB3 makes anew.
NOT_THE_FILES = {
    "env", "tensorboard_log", "device", "policy", "rollout_buffer", "replay_buffer", "lr_schedule", "_logger",
    "_custom_logger", "_vec_normalize_env", "_episode_storage",
}  # fmt: skip
# Attributes that learn() makes anew where they are None.
MADE_ANEW = {"_last_obs", "_last_original_obs", "_last_episode_starts", "ep_info_buffer", "ep_success_buffer"}


@dataclass(frozen=True)
class SavedModel:
    """
    A model file that was read.

    :param objects: the attributes by name, for ``custom_objects``
    :param names: of all attributes in the file
    :param archive: a zip with the names of those attributes and with the tensors, for ``BaseAlgorithm.load``
    """

    objects: dict[str, Any]
    names: set[str]
    archive: io.BytesIO


def read_model(
    path: ModelFile,
    algorithm: type[BaseAlgorithm],
    told_by: str,
    replaced: dict[str, Any],
    safe_globals: Collection[Any] = (),
    trust: bool = False,
) -> SavedModel:
    """
    Read a saved model as data.

    :param path: path of the zip, ``.zip`` may be left out, or an open binary file, whose position is kept
    :param algorithm: class that is to be loaded
    :param told_by: key of ``TOLD_BY`` for that class, or for the base class that it is derived from
    :param replaced: objects that replace those of the same name in the file, which are then not read
    :param safe_globals: classes and functions that the file may name, make and call, beside the listed ones
    :param trust: whether to unpickle whatever the file has, which may run any code
    :raises TypeError: ``safe_globals`` or ``trust`` is of another kind
    :raises FileNotFoundError: there is no such file
    :raises UnsafeFileError: it has something that is not data, or that needs code which is not listed
    :raises ModelFileError: it is damaged, was saved by another algorithm, or has a value of the wrong kind
    """
    given = _checked(safe_globals, trust)
    names, variable_names = _torch_names(algorithm)
    members = {
        "data",
        "system_info.txt",
        *(f"{name}.pth" for name in names),
        *(["pytorch_variables.pth"] if variable_names else []),
    }
    parts = read_model_archive(path, members.__contains__, {"data"})
    with named(path):
        data = json_of(parts["data"])
        # First, since those of other algorithms have other members.
        _check_algorithm(data, algorithm, told_by)
        lacking = [f"{name}.pth" for name in names if f"{name}.pth" not in parts]
        if lacking:
            raise ModelFileError(f"it is not a whole saved model, it has no {' and no '.join(lacking)}: get it again")
        allowed = Allowed(given, algorithm)
        rebuilding = Rebuilding(allowed.classes)
        objects: dict[str, Any] = {"lr_schedule": None, **replaced}
        obstacles: dict[str, ModelFileError] = {}
        for name, value in data.items():
            if name in objects or not (trust or _is_kept(name, algorithm)):
                continue
            try:
                objects[name] = _trusted(name, value) if trust else _read(name, value, allowed, rebuilding)
            except ModelFileError as error:
                if trust or name in KINDS - MADE_ANEW:
                    obstacles[name] = error
                    continue
                words = one_line(str(_of_all({name: error}, allowed)), 1000)
                warnings.warn(f"{name_of(path)}: an attribute that can be done without is left out, {words}")
                if name in MADE_ANEW:
                    objects[name] = None
        if obstacles:
            raise _of_all(obstacles, allowed)
        tensors = read_state_dicts(parts, names)
        variables = state_in("pytorch_variables.pth", parts["pytorch_variables.pth"]) if variable_names else None
        if not trust:
            check_observations(objects)
            check_sizes(objects)
            check_weights(objects, tensors, allowed)
    if variables is not None:
        variables = {name: variables[name] for name in variable_names if name in variables}
    return SavedModel(objects, set(data), _clean_archive(objects, tensors, variables, parts.get("system_info.txt", b"")))


def read_parameters(path: ModelFile, algorithm: type[BaseAlgorithm]) -> dict[str, Any]:
    """
    Read the parameters alone of a saved model, for ``BaseAlgorithm.set_parameters``.

    :param path: path of the zip, ``.zip`` may be left out, or an open binary file, whose position is kept
    :param algorithm: class that they are for
    :return: the state dicts by name
    :raises ValueError: as :func:`read_model`
    """
    names, _ = _torch_names(algorithm)
    members = {f"{name}.pth" for name in names}
    parts = read_model_archive(path, members.__contains__, members)
    with named(path):
        return read_state_dicts(parts, names)


@contextmanager
def named(path: ModelFile) -> Iterator[None]:
    """Give the name of a file to what is found wrong in it."""
    try:
        yield
    except UnsafeFileError as error:
        found, ways = one_line(error.found, 1000), one_line(error.ways, 1000)
        raise UnsafeFileError(f"{name_of(path)} is refused: {found}", ways) from error
    except ModelFileError as error:
        found, ways = one_line(error.found, 1000), one_line(error.ways, 1000)
        raise ModelFileError(f"{name_of(path)}: {found}", ways) from error
    except RecursionError as error:
        raise UnsafeFileError(f"{name_of(path)} is refused: it is nested too deep") from error
    except MemoryError as error:
        raise UnsafeFileError(f"{name_of(path)} is refused: it takes more memory than there is") from error


def _checked(safe_globals: Any, trust: Any) -> tuple[Any, ...]:
    words = "safe_globals must be a list of classes and functions, such as [MyExtractor], but it"
    if isinstance(safe_globals, str) or not isinstance(safe_globals, Iterable):
        raise TypeError(f"{words} is {_path_of(safe_globals) or shown(safe_globals)}")
    given = tuple(safe_globals)
    wrong = [one for one in given if _path_of(one) is None]
    if wrong:
        raise TypeError(f"{words} has {shown(wrong)}")
    check_trust(trust)
    return given


def _path_of(value: Any) -> str | None:
    """The name of a class or a function; None for anything else."""
    return path_of(value) if hasattr(value, "__module__") and hasattr(value, "__qualname__") else None


def _torch_names(algorithm: type[BaseAlgorithm]) -> tuple[list[str], list[str]]:
    """The names of the state dicts and of the tensors that a class keeps, before there is an instance."""
    try:
        return algorithm._get_torch_save_params(algorithm.__new__(algorithm))
    except Exception:  # a user's method may need an instance that was set up
        return ["policy", "policy.optimizer"], []


def _is_kept(name: str, algorithm: type[BaseAlgorithm]) -> bool:
    """Whether the file decides this attribute: those of the algorithm, and a user's that hide nothing of the class."""
    if name in KINDS:
        return True
    # A default that a class has for an attribute is none of its methods.
    hidden = inspect.getattr_static(algorithm, name, None)
    is_default = hidden is None or type(hidden) in (bool, int, float, str)
    if name in NOT_THE_FILES or not is_default or not name.isidentifier() or name.startswith("__"):
        return False
    try:
        return name not in algorithm._excluded_save_params(algorithm.__new__(algorithm))
    except Exception:  # a user's method may need an instance that was set up
        return not name.startswith("_")


def json_of(raw: bytes) -> dict[str, Any]:
    """
    The attributes in the member ``data``, objects still pickled.

    :param raw: its content
    :raises UnsafeFileError: it has a name twice
    :raises ModelFileError: it is no JSON dictionary
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise UnsafeFileError("its data has a name twice, and readers differ in which they take")
        return found

    # Each list and dictionary of it takes fifty times as much memory.
    if raw.count(b"[") + raw.count(b"{") + raw.count(b",") > MOST_NODES:
        raise UnsafeFileError(f"its data has more than {MOST_NODES:,} parts")
    try:
        data = json.loads(raw, object_pairs_hook=once)
    except UnsafeFileError:
        raise
    except ValueError as error:
        raise ModelFileError("it is no whole saved model (its data is no JSON): get it again") from error
    if not isinstance(data, dict):
        raise ModelFileError("it is no saved model: its data is no dictionary")
    return data


def told(data: Collection[str]) -> str | None:
    """The attribute that tells which algorithm saved a file, a key of ``TOLD_BY``; None if it has none of those."""
    return next((name for name in TOLD_BY if name in data), None)


def pickle_in(value: Any) -> bytes | None:
    """
    The pickle that a part of ``data`` is; None for a value of JSON's.

    :raises UnsafeFileError: it is no base64
    """
    if not (isinstance(value, dict) and ":serialized:" in value):
        return None
    try:
        return base64.b64decode(value[":serialized:"], validate=True)
    except (TypeError, ValueError) as error:
        raise UnsafeFileError("a pickle that is no base64") from error


def _check_algorithm(data: dict[str, Any], algorithm: type[BaseAlgorithm], told_by: str) -> None:
    found = told(data)
    if found != told_by:
        whose, has = (f", {TOLD_BY[found]}", f"a {found}") if found else ("", f"no {told_by}")
        raise ModelFileError(f"it was saved by another algorithm{whose}, {algorithm.__name__} can't load it: it has {has}")


def _read(name: str, value: Any, allowed: Allowed, rebuilding: Rebuilding) -> Any:
    """The attribute that a part of ``data`` describes, checked."""
    try:
        pickled = pickle_in(value)
        read_value = value if pickled is None else rebuilding.of(read(pickled))
    except UnsafeFileError as error:
        if name not in MADE_ANEW and is_own(name, value):
            # Else its class is gone, and needed as the file of anyone else would need it.
            with suppress(ModelFileError):
                made = _trusted(name, value)
                allowed.bring(made)
                return made
        raise UnsafeFileError(f"its {name} needs {error}") from error
    try:
        check_field(name, read_value, allowed)
    except ModelFileError as error:
        raise ModelFileError(f"its {name} {error}") from error
    return read_value


def _trusted(name: str, value: Any) -> Any:
    try:
        pickled = pickle_in(value)
        return value if pickled is None else unpickle(pickled)
    except Exception as error:
        raise ModelFileError(f"its {name} ({value.get(':type:')}) can't be read here ({error})") from error


def _of_all(obstacles: dict[str, ModelFileError], allowed: Allowed) -> ModelFileError:
    """One error for what is wrong with several attributes, with what to do about it."""
    found = "; ".join(str(error) for error in obstacles.values())
    instead = "custom_objects={" + ", ".join(f"{name!r}: ..." for name in obstacles) + "}"
    if not any(isinstance(error, UnsafeFileError) for error in obstacles.values()):
        return ModelFileError(found, f"Pass {'another one' if len(obstacles) == 1 else 'others'}: {instead}")
    names = ", ".join(one_line(path) for path in map(_path_of, allowed.classes) if path)
    given = f" (you gave {names})" if names else ""
    return UnsafeFileError(
        found,
        f"Pass {instead} to put something else in its place; or safe_globals=[...] with the classes and functions that it "
        f"needs, by those names, if you have them{given}; or trust=True to run whatever the file asks for, if you trust those "
        "who made it",
    )


def _clean_archive(
    objects: dict[str, Any], tensors: dict[str, Any], variables: dict[str, Any] | None, system_info: bytes
) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", json.dumps(dict.fromkeys(objects)))
        for name, value in {**tensors, "pytorch_variables": variables}.items():
            with archive.open(f"{name}.pth", "w", force_zip64=True) as member:
                th.save(value, member)
        if system_info:
            # A terminal obeys what isn't printable.
            lines = system_info[:10_000].decode(errors="replace").splitlines()
            archive.writestr("system_info.txt", "\n".join(one_line(line, 1000) for line in lines))
    file.seek(0)
    return file
