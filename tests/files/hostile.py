"""
Model files that try to run code, to take a machine down, or to go on as something that they are not: a corpus of kinds.

``python -m tests.files.hostile`` opens each in a process of its own, with limits, and prints as JSON what came of it.
"""

# ruff: noqa: E501  (a kind is one entry of a table, which wrapping makes no easier to read)

import io
import json
import os
import pickle
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trpo_plus import TRPO, load_vec_normalize
from tests.conftest import forget_what_was_saved, random_env

Parts = dict[str, bytes]

SECONDS = 20
MEMORY = 300 * 2**20


def base_model() -> Parts:
    """The members of a small model's file."""
    file = io.BytesIO()
    settings = {"n_steps": 16, "batch_size": 16, "policy_kwargs": {"net_arch": [4]}, "seed": 0, "device": "cpu"}
    TRPO("MlpPolicy", random_env(), **settings).save(file)
    forget_what_was_saved()
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def members_of(file: bytes) -> Parts:
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: Parts, **kwargs: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **kwargs) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


def with_data(parts: Parts, **changed: Any) -> bytes:
    """The model with other attributes: bytes are pickles, all else is JSON."""
    data = json.loads(parts["data"])
    for name, value in changed.items():
        is_pickle = isinstance(value, bytes)
        data[name] = {":type:": "<class 'object'>", ":serialized:": b64encode(value).decode()} if is_pickle else value
    return zipped({**parts, "data": json.dumps(data).encode()})


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(path: str) -> bytes:
    """A pickle's instructions that name ``module:attribute``."""
    module, name = path.split(":")
    return text(module) + text(name) + b"\x93"


def value_of(value: Any) -> bytes:
    """A pickle's instructions for a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def pickled(instructions: bytes) -> bytes:
    return b"\x80\x04" + instructions + b"."


def call(path: str, *arguments: Any) -> bytes:
    """A pickle's instructions that call something; arguments in bytes are instructions themselves."""
    parts = b"".join(one if isinstance(one, bytes) else value_of(one) for one in arguments)
    return named(path) + b"(" + parts + b"tR"


def torch_file(pickle_of_it: bytes, **storages: bytes) -> bytes:
    """A ``.pth`` with this pickle."""
    return zipped(
        {
            "archive/data.pkl": pickle_of_it,
            "archive/version": b"3\n",
            **{f"archive/data/{key.removeprefix('_')}": raw for key, raw in storages.items()},
        }
    )


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    th.save(value, file)
    return file.getvalue()


# What a pickle could call, with arguments that would leave a trace: {} is a file that must not come into being.
CALLS: dict[str, tuple[Any, ...]] = {
    "os:system": ("touch {}",),
    "posix:system": ("touch {}",),
    "os:popen": ("touch {}",),
    "os:mkdir": ("{}",),
    "os:open": ("{}", 65),
    "subprocess:Popen": (["touch", "{}"],),
    "subprocess:check_output": (["touch", "{}"],),
    "subprocess:getoutput": ("touch {}",),
    "builtins:eval": ("open('{}', 'w')",),
    "builtins:exec": ("open('{}', 'w')",),
    "builtins:open": ("{}", "w"),
    "builtins:__import__": ("antigravity",),
    "builtins:getattr": (named("os:path"), "join"),
    "builtins:compile": ("1", "", "eval"),
    "importlib:import_module": ("this",),
    "runpy:run_path": ("{}.py",),
    "runpy:_run_code": (call("builtins:compile", "open('{}', 'w')", "", "exec"), {}),
    "pathlib:Path.touch": (call("pathlib:PosixPath", "{}"),),
    "pathlib:Path.write_text": (call("pathlib:PosixPath", "{}"), "x"),
    "shutil:copyfile": ("/etc/hostname", "{}"),
    "shutil:copytree": ("/etc/apt", "{}"),
    "io:FileIO": ("{}", "w"),
    "tempfile:mkdtemp": ("", "{}", "/tmp"),
    "pickle:loads": (pickle.dumps(pickled(call("os:system", "touch {}"))) and b"C\x00",),
    "cloudpickle.cloudpickle:loads": (b"C\x00",),
    "marshal:loads": (b"C\x01N",),
    "types:FunctionType": (b"N", {}),
    "types:CodeType": (0,),
    "code:interact": (),
    "pty:spawn": ("true",),
    "pdb:run": ("open('{}', 'w')",),
    "timeit:timeit": ("open('{}', 'w')", "pass", named("time:perf_counter"), 1),
    "cProfile:run": ("open('{}', 'w')",),
    "profile:run": ("open('{}', 'w')",),
    "trace:Trace.run": (call("trace:Trace"), "open('{}', 'w')"),
    "doctest:debug_script": ("open('{}', 'w')",),
    "logging:FileHandler": ("{}",),
    "logging.config:dictConfig": ({"version": 1},),
    "ctypes:CDLL": ("libc.so.6",),
    "functools:partial": (named("os:system"), "touch {}"),
    "functools:reduce": (named("os:system"), ["touch {}"]),
    "operator:methodcaller": ("system", "touch {}"),
    "operator:attrgetter": ("system",),
    "itertools:starmap": (named("os:system"), [["touch {}"]]),
    "multiprocessing:Process": (b"N", named("os:system")),
    "threading:Timer": (0, named("os:system"), ["touch {}"]),
    "webbrowser:open": ("file:///nothing",),
    "urllib.request:urlopen": ("http://127.0.0.1:9/",),
    "socket:create_connection": (["127.0.0.1", 9],),
    "sqlite3:connect": ("{}",),
    "zipfile:ZipFile": ("{}", "w"),
    "numpy:save": ("{}", 1),
    "numpy:savetxt": ("{}", [1]),
    "numpy:load": ("{}",),
    "numpy:memmap": ("{}", "uint8", "w+", 0, 10),
    "numpy:vectorize": (named("os:system"),),
    "numpy:fromfunction": (named("os:system"), [1]),
    "numpy.core.multiarray:_reconstruct": (named("subprocess:Popen"), (0,), b"C\x01b"),
    "torch:load": ("{}",),
    "torch:save": ("{}", "{}"),
    "torch.hub:load": ("x", "y"),
    "torch.jit:load": ("{}",),
    "torch.storage:_load_from_bytes": (b"C\x00",),
    "torch._utils:_rebuild_parameter": (1, True, {}),
    "torch.utils.cpp_extension:load_inline": ("x", "int f;"),
    "torch.serialization:add_safe_globals": ([],),
    "gymnasium:make": ("os:Env-v0",),
    "gymnasium.envs.registration:load_env_creator": ("os:system",),
    "gym:make": ("os:Env-v0",),
    "gym.envs.registration:load_env_creator": ("os:system",),
    "gym.vector.async_vector_env:AsyncVectorEnv": ([named("os:getcwd")],),
    "gymnasium.vector.utils.misc:CloudpickleWrapper": (named("os:system"),),
    "stable_baselines3.common.save_util:os.system": ("touch {}",),
    "stable_baselines3.common.save_util:load_from_zip_file": ("{}",),
    "stable_baselines3.common.save_util:load_from_pkl": ("{}",),
    "stable_baselines3.common.save_util:save_to_pkl": ("{}", 1),
    "stable_baselines3.common.logger:CSVOutputFormat": ("{}",),
    "stable_baselines3.common.logger:JSONOutputFormat": ("{}",),
    "stable_baselines3.common.logger:HumanOutputFormat": ("{}",),
    "stable_baselines3.common.logger:configure": ("{}",),
    "stable_baselines3.common.monitor:ResultsWriter": ("{}",),
    "stable_baselines3.common.env_util:make_vec_env": ("CartPole-v1", 1),
    "stable_baselines3.common.vec_env.subproc_vec_env:SubprocVecEnv": ([named("os:getcwd")],),
    "stable_baselines3.common.vec_env.vec_normalize:VecNormalize.load": ("{}", 1),
    "stable_baselines3.common.vec_env.vec_video_recorder:VecVideoRecorder": (1, "{}", 1),
    "stable_baselines3.common.utils:FloatSchedule": (named("os:system"),),
    "stable_baselines3.common.policies:ActorCriticPolicy.load": ("{}",),
    "sb3_contrib:TRPO.load": ("{}",),
    "sb3_trpo_plus:TRPO.load": ("{}",),
    "sb3_trpo_plus.files.models:zipfile.ZipFile": ("{}", "w"),
    "copyreg:_reconstructor": (named("subprocess:Popen"), named("builtins:object"), b"N"),
    "copyreg:__newobj__": (named("subprocess:Popen"),),
    "copyreg:add_extension": ("os", "system", 7),
    "enum:Enum": ("x", "y"),
    "collections:namedtuple": ("x", "y"),
    "collections:defaultdict": (named("os:getcwd"),),
    "builtins:type": ("x", (), {}),
    "builtins:map": (named("os:system"), ["touch {}"]),
    "builtins:bytearray": (10**9,),
    "builtins:range": (10**9,),
    "builtins:list": (call("builtins:range", 10**8),),
    "builtins:set": ([],),
    "builtins:frozenset": ([],),
    "builtins:print": ("hostile",),
    "builtins:breakpoint": (),
    "sys:exit": (),
    "os:_exit": (0,),
    "os:abort": (),
    "os:kill": (0, 0),
    "signal:raise_signal": (15,),
    "time:sleep": (SECONDS,),
}  # fmt: skip


def filled(value: Any, trace: str) -> Any:
    """The arguments of a call with the file's path in the place of ``{}``."""
    if isinstance(value, str):
        return value.replace("{}", trace)
    if isinstance(value, (list, tuple)):
        return type(value)(filled(part, trace) for part in value)
    if isinstance(value, bytes) and b"{}" in value:
        return value  # instructions, whose texts have their lengths before them: these calls fail, and are refused, anyhow
    return value


def calling(path: str) -> Callable[[Parts, str], bytes]:
    def make(parts: Parts, trace: str) -> bytes:
        return with_data(parts, policy_kwargs=pickled(call(path, *filled(CALLS[path], trace))))

    return make


def box(*shape: int) -> bytes:
    return pickle.dumps(spaces.Box(-1, 1, shape), protocol=4)


def _nested_tuples(depth: int) -> bytes:
    """((((), ()), ((), ())), ...) with shared parts: a hash of it takes 2 ** depth steps."""
    return b")q\x00" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(depth))


def _nested_tuple(depth: int) -> bytes:
    """As :func:`_nested_tuples`, with only the last of them left on the stack."""
    return b")q\x00" + b"".join(b"0h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(depth))


def _doubling_list(depth: int) -> bytes:
    """[[[...], [...]], [[...], [...]]] with shared parts: written out, it has 2 ** depth of them."""
    return b"]q\x00" + b"".join(b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(depth))


def _many(count: int, instruction: bytes) -> bytes:
    """A list with one value many times."""
    return b"](" + instruction + b"q\x00" + b"h\x00" * (count - 1) + b"e"


def _metadata(state: Any) -> None:
    for name in state._metadata:
        state._metadata[name]["assign_to_params_buffers"] = True


def _group(parts: Parts, **settings: Any) -> bytes:
    return _changed_optimiser(parts, lambda state: state["param_groups"][0].update(settings))


def _moments(parts: Parts, **entry: Any) -> bytes:
    return _changed_optimiser(parts, lambda state: state["state"].update(dict.fromkeys(range(9), entry)))


def _claiming_less(parts: Parts) -> bytes:
    """A member whose header says that it is small, and that inflates to 50 MB."""
    changed = bytearray(zipped({**parts, "data": parts["data"] + b" " * 50_000_000}, compression=zipfile.ZIP_DEFLATED))
    size = struct.pack("<I", len(parts["data"]) + 50_000_000)
    at = changed.find(size)
    while at != -1:
        changed[at : at + 4] = struct.pack("<I", len(parts["data"]))
        at = changed.find(size, at + 4)
    return bytes(changed)


def _tensor(storage: str, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, elements: int = 4) -> bytes:
    place = (
        b"(" + text("storage") + b"ctorch\n" + storage.encode() + b"\n" + text("0") + text("cpu") + value_of(elements) + b"tQ"
    )
    hooks = b"ccollections\nOrderedDict\n)R"
    parts = place + value_of(offset) + value_of(size) + value_of(stride) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + parts + b"tR"


def _weights(name: str, tensor: bytes, **storages: bytes) -> bytes:
    return torch_file(pickled(b"}(" + text(name) + tensor + b"u"), **storages)


def _changed_weights(parts: Parts, change: Callable[[Any], None]) -> bytes:
    state = th.load(io.BytesIO(parts["policy.pth"]), weights_only=True)
    change(state)
    return zipped({**parts, "policy.pth": saved(state)})


def _changed_optimiser(parts: Parts, change: Callable[[Any], None]) -> bytes:
    state = th.load(io.BytesIO(parts["policy.optimizer.pth"]), weights_only=True)
    change(state)
    return zipped({**parts, "policy.optimizer.pth": saved(state)})


def _on_two_disks(archive: bytes) -> bytes:
    changed = bytearray(archive)
    changed[changed.rindex(b"PK\x06\x07") + 16] = 2
    return bytes(changed)


def _twice(parts: Parts, name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for part, raw in [*parts.items(), (name, content)]:
            archive.writestr(part, raw)
    return file.getvalue()


def with_kwargs(parts: Parts, instructions: bytes) -> bytes:
    """The model whose policy_kwargs are made by these instructions."""
    return with_data(parts, policy_kwargs=pickled(instructions))


def touching(trace: str) -> bytes:
    """Instructions that call ``touch``."""
    return call("os:system", f"touch {trace}")


def _encrypted(parts: Parts) -> bytes:
    whole = bytearray(zipped(parts))
    at = whole.find(b"PK\x01\x02")
    while at != -1:
        whole[at + 8] |= 1
        at = whole.find(b"PK\x01\x02", at + 1)
    return bytes(whole)


def _dict_space_of(*keys: str) -> bytes:
    return pickle.dumps(spaces.Dict({key: spaces.Box(-1, 1, (2,)) for key in keys}), protocol=4)


def _build(cls: str, state: bytes) -> bytes:
    """An object made empty and filled from a state."""
    return named(cls) + b")\x81" + state + b"b"


KINDS: dict[str, Callable[[Parts, str], bytes]] = {
    **{f"calls {path}": calling(path) for path in CALLS},
    # Other instructions that call or import.
    "INST": lambda p, t: with_kwargs(p, b"(" + text(f"touch {t}") + b"ios\nsystem\n"),
    "OBJ": lambda p, t: with_kwargs(p, b"(" + named("os:system") + text(f"touch {t}") + b"o"),
    "NEWOBJ of Popen": lambda p, t: with_kwargs(p, named("subprocess:Popen") + value_of((["touch", t],)) + b"\x81"),
    "NEWOBJ_EX of Popen": lambda p, t: with_kwargs(p, named("subprocess:Popen") + value_of((["touch", t],)) + b"}\x92"),
    "EXT1": lambda p, t: with_kwargs(p, b"\x82\x07"),
    "PERSID": lambda p, t: with_kwargs(p, b"P1\n"),
    "BINPERSID": lambda p, t: with_kwargs(p, b"K\x01Q"),
    "NEXT_BUFFER": lambda p, t: with_kwargs(p, b"\x97"),
    "GLOBAL of protocol 0": lambda p, t: with_data(p, policy_kwargs=f"cos\nsystem\n(Vtouch {t}\ntR.".encode()),
    "a call inside a call": lambda p, t: with_data(
        p, observation_space=pickled(call("collections:OrderedDict", touching(t)))
    ),
    "a call in a deque": lambda p, t: with_data(
        p, ep_info_buffer=pickled(call("collections:deque", [], 100) + touching(t) + b"a")
    ),
    "a call in a space's state": lambda p, t: with_data(
        p, action_space=pickled(_build("gymnasium.spaces.discrete:Discrete", b"}(" + text("n") + touching(t) + b"u"))
    ),
    "a call in an unknown attribute": lambda p, t: with_data(p, note=pickled(touching(t))),
    "a call that is popped": lambda p, t: with_kwargs(p, touching(t) + b"0}"),
    "a call in lr_schedule": lambda p, t: with_data(p, lr_schedule=pickled(touching(t))),
    "a callable target_kl": lambda p, t: with_data(p, target_kl=pickled(named("os:system"))),
    "a partial as learning_rate": lambda p, t: with_data(
        p, learning_rate=pickled(call("functools:partial", named("os:system"), f"touch {t}"))
    ),
    # State for what should not have it.
    "BUILD on a class": lambda p, t: with_data(
        p, policy_class=pickled(named("stable_baselines3.common.policies:ActorCriticPolicy") + value_of({"forward": 1}) + b"b")
    ),
    "BUILD with __class__": lambda p, t: with_data(
        p,
        learning_rate=pickled(
            _build("stable_baselines3.common.utils:ConstantSchedule", b"}(" + text("__class__") + named("subprocess:Popen") + b"u")
        ),
    ),
    "BUILD with slots": lambda p, t: with_data(
        p, learning_rate=pickled(_build("stable_baselines3.common.utils:ConstantSchedule", value_of(({}, {"val": 1.0}))))
    ),
    "BUILD of a CloudpickleWrapper": lambda p, t: with_data(
        p,
        policy_kwargs=pickled(
            _build(
                "stable_baselines3.common.vec_env.base_vec_env:CloudpickleWrapper",
                b"C" + bytes([len(pickled(call("os:getcwd")))]) + pickled(call("os:getcwd")),
            )
        ),
    ),
    "a function with its code": lambda p, t: with_data(p, learning_rate=_cloudpickled(lambda progress: progress)),
    "a class with its code": lambda p, t: with_data(p, policy_class=_cloudpickled_class()),
    # Names without calls, in fields that are called later.
    **{
        f"{field} names {path}": (lambda p, t, field=field, path=path: with_data(p, **{field: pickled(named(path))}))
        for field in ("policy_class", "rollout_buffer_class", "learning_rate", "gamma", "observation_space", "seed")
        for path in ("subprocess:Popen", "os:system")
    },
    **{
        f"{key} is Popen": (
            lambda p, t, key=key: with_data(
                p,
                policy_kwargs=pickled(b"}(" + text(key) + named("subprocess:Popen") + b"u"),
                observation_space=_dict_space_of("touch", t),
            )
        )
        for key in ("features_extractor_class", "optimizer_class", "activation_fn", "dist_kwargs", "net_arch")
    },
    "an extractor's argument is a function": lambda p, t: with_kwargs(p, b"}(" + text("features_extractor_kwargs") + b"}(" + text("f") + named("os:system") + b"uu"),
    "a dotted name below an allowed class": lambda p, t: with_data(
        p, policy_class=pickled(named("stable_baselines3.common.policies:ActorCriticPolicy.__init__.__globals__"))
    ),
    "the policy is another class of SB3": lambda p, t: with_data(
        p, policy_class=pickled(named("stable_baselines3.common.logger:CSVOutputFormat"))
    ),
    # No pickle at all.
    "env in the JSON": lambda p, t: with_data(p, env="os:Env-v0"),
    "tensorboard_log in the JSON": lambda p, t: with_data(p, tensorboard_log=t),
    "a method in the JSON": lambda p, t: with_data(p, train=1, predict="x"),
    "private attributes in the JSON": lambda p, t: with_data(p, _logger="x", _custom_logger=True, _skips=1, policy="x"),
    "__class__ in the JSON": lambda p, t: with_data(p, __class__="x", __dict__={}),
    "an attribute twice": lambda p, t: zipped({**p, "data": p["data"].replace(b"{", b'{"seed": 1, "seed": 2, ', 1)}),
    "data that is a list": lambda p, t: zipped({**p, "data": b"[]"}),
    "data that is no text": lambda p, t: zipped({**p, "data": b"\xff\xfe{}"}),
    "data nested deep": lambda p, t: zipped({**p, "data": b'{"a":' * 50_000 + b"1" + b"}" * 50_000}),
    "data with a number of a million digits": lambda p, t: zipped({**p, "data": b'{"n_steps": ' + b"9" * 10**6 + b"}"}),
    "base64 that is none": lambda p, t: with_data(p, policy_kwargs={":type:": "x", ":serialized:": "!!!"}),
    "a pickle that is a number": lambda p, t: with_data(p, policy_kwargs={":type:": "x", ":serialized:": 3}),
    "a learning rate of text": lambda p, t: with_data(p, learning_rate="fast"),
    "a learning rate that is NaN": lambda p, t: with_data(p, learning_rate=float("nan")),
    "a gamma that is infinite": lambda p, t: with_data(p, gamma=float("inf")),
    "n_steps of text": lambda p, t: with_data(p, n_steps="many"),
    "n_steps that is negative": lambda p, t: with_data(p, n_steps=-1),
    "use_sde of text": lambda p, t: with_data(p, use_sde="yes"),
    "policy_kwargs that is a list": lambda p, t: with_data(p, policy_kwargs=[1]),
    "policy_kwargs with an unknown argument": lambda p, t: with_data(p, policy_kwargs={"unheard": 1}),
    # Too large.
    "a set of nested tuples": lambda p, t: with_kwargs(p, b"\x8f(" + _nested_tuples(60) + b"\x90"),
    "a dictionary with nested tuples as keys": lambda p, t: with_kwargs(p, b"}" + _nested_tuples(60) + b"Ns"),
    "nested tuples as a value": lambda p, t: with_kwargs(p, b"}" + text("net_arch") + _nested_tuple(60) + b"s"),
    **{
        f"lists that double as {field}": (lambda p, t, field=field: with_data(p, **{field: pickled(_doubling_list(60))}))
        for field in ("policy_kwargs", "seed", "observation_space", "ep_info_buffer", "policy_class", "_last_obs")
    },
    "lists that double as an array's shape": lambda p, t: with_data(
        p, _last_obs=pickled(call("numpy.core.numeric:_frombuffer", b"C\x04abcd", call("numpy:dtype", "f4"), _doubling_list(60), "C"))
    ),
    "lists that double as a dtype": lambda p, t: with_data(p, _last_obs=pickled(call("numpy:dtype", _doubling_list(60)))),
    "lists that double as a function": lambda p, t: with_data(p, learning_rate=pickled(_doubling_list(60) + b")R")),
    "a call of a call of doubling lists": lambda p, t: with_data(
        p, learning_rate=pickled(call("os:getcwd", _doubling_list(60)) + b")R")
    ),
    "lists that double as a class's name": lambda p, t: with_data(
        p, policy_class=pickled(call("cloudpickle.cloudpickle:_make_skeleton_class", 1, _doubling_list(60), (), {"__module__": "x"}))
    ),
    "lists that double as a tensor's size": lambda p, t: zipped(
        {**p, "policy.pth": torch_file(pickled(call("torch._utils:_rebuild_tensor_v2", b"K\x01Q", 0, _doubling_list(60), (1,))))}
    ),
    "doubling lists in each of sixty attributes": lambda p, t: with_data(
        p, **{f"note{i}": pickled(_doubling_list(18)) for i in range(60)}
    ),
    "one text many times": lambda p, t: with_data(p, seed=pickled(_many(100_000, text("x" * 300_000)))),
    "one array many times": lambda p, t: with_data(
        p,
        _last_obs=pickled(
            _many(50_000, call("numpy.core.numeric:_frombuffer", b"B" + struct.pack("<I", 400_000) + b"x" * 400_000, call("numpy:dtype", "u1"), (400_000,), "C"))
        ),
    ),
    "lists of JSON": lambda p, t: zipped({**p, "data": b'{"a": [' + b"[]," * 5_000_000 + b"1]}"}, compression=zipfile.ZIP_DEFLATED),
    "a member that claims to be small": lambda p, t: _claiming_less(p),
    "hundreds of .pth of zeros": lambda p, t: zipped(
        {**p, **{f"x{i}.pth": b"\0" * 2**20 for i in range(300)}}, compression=zipfile.ZIP_DEFLATED
    ),
    "metadata that assigns": lambda p, t: _changed_weights(p, _metadata),
    "weights that are integers": lambda p, t: _changed_weights(
        p, lambda state: state.update({"value_net.bias": th.ones(1, dtype=th.int64)})
    ),
    "an unknown weight": lambda p, t: _changed_weights(p, lambda state: state.update({"other": th.ones(1)})),
    "moments of one element": lambda p, t: _moments(p, step=1, exp_avg=th.ones(1), exp_avg_sq=th.ones(1)),
    "moments of two elements": lambda p, t: _moments(p, step=1, exp_avg=th.ones(2), exp_avg_sq=th.ones(2)),
    "moments without a square": lambda p, t: _moments(p, step=1, exp_avg=th.ones(1)),
    "an optimiser whose betas are text": lambda p, t: _group(p, betas=("a", "b")),
    "an optimiser whose betas are large": lambda p, t: _group(p, betas=(5.0, 5.0)),
    "an optimiser whose rate is text": lambda p, t: _group(p, lr="x"),
    "an optimiser whose rate is negative": lambda p, t: _group(p, lr=-1.0),
    "an optimiser of other parameters": lambda p, t: _group(p, params=[0]),
    "a learning rate of 400 digits": lambda p, t: with_data(p, learning_rate=10**400),
    "a gae_lambda of 400 digits": lambda p, t: with_data(p, gae_lambda=10**400),
    "a tensor of an overflowing size": lambda p, t: zipped(
        {**p, "policy.pth": _weights("log_std", _tensor("FloatStorage", (2**39, 2**39, 0), (1, 1, 1)), _0=b"\0" * 16)}
    ),
    "dunder attributes": lambda p, t: with_data(p, __deepcopy__=1, __reduce__=1),
    "episodes of text": lambda p, t: with_data(p, ep_info_buffer=pickled(call("collections:deque", [{"r": "x", "l": 1}], 100))),
    "last observations of another shape": lambda p, t: with_data(
        p, _last_obs=pickled(call("numpy.core.numeric:_frombuffer", b"C\x04abcd", call("numpy:dtype", "f4"), (1,), "C"))
    ),
    "lists that double": lambda p, t: with_data(p, note=pickled(_doubling_list(60))),
    "a list in itself": lambda p, t: with_data(p, note=pickled(b"]q\x00h\x00a")),
    "bytes of a length of eight bytes": lambda p, t: with_data(p, policy_kwargs=b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x."),
    "a bytearray of a length of eight bytes": lambda p, t: with_data(p, policy_kwargs=b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x."),
    "a long integer": lambda p, t: with_data(p, policy_kwargs=b"\x80\x04\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"."),
    "a negative length": lambda p, t: with_data(p, policy_kwargs=b"\x80\x04\x8b" + struct.pack("<i", -5) + b"."),
    "a memo index of a billion": lambda p, t: with_kwargs(p, b"}r" + struct.pack("<I", 2**31)),
    "three million instructions": lambda p, t: with_data(p, note=pickled(b"]" + b"Na" * 1_500_000)),
    "a hundred nested marks": lambda p, t: with_data(p, note=pickled(b"(" * 100_000)),
    "layers without end": lambda p, t: with_data(p, policy_kwargs={"net_arch": [4] * 200_000}),
    "a layer without end": lambda p, t: with_data(p, policy_kwargs={"net_arch": [10**12]}),
    "two wide layers": lambda p, t: with_data(p, policy_kwargs={"net_arch": [2**20, 2**20]}),
    "features without end": lambda p, t: with_data(p, policy_kwargs={"features_extractor_kwargs": {"features_dim": 10**12}}),
    "a billion actions": lambda p, t: with_data(p, action_space=pickle.dumps(spaces.Discrete(2**31 - 1), protocol=4)),
    "a billion binary actions": lambda p, t: with_data(
        p, action_space=pickled(_build("gymnasium.spaces.multi_binary:MultiBinary", value_of({"n": 2**31 - 1})))
    ),
    "rollouts of a petabyte": lambda p, t: with_data(p, n_steps=2**40, n_envs=2**20),
    "an array that is larger than its bytes": lambda p, t: with_data(
        p, _last_obs=pickled(call("numpy.core.numeric:_frombuffer", b"C\x04abcd", call("numpy:dtype", "f4"), (10**9,), "C"))
    ),
    "an array of objects": lambda p, t: with_data(
        p, _last_obs=pickled(call("numpy.core.numeric:_frombuffer", b"C\x08abcdefgh", call("numpy:dtype", "O"), (1,), "C"))
    ),
    "an array of records": lambda p, t: with_data(p, _last_obs=pickled(call("numpy:dtype", [("a", "O")]))),
    "a Box with NaN": lambda p, t: with_data(p, observation_space=_box_with_nan()),
    "a schedule of text": lambda p, t: with_data(
        p, learning_rate=pickled(_build("stable_baselines3.common.utils:ConstantSchedule", value_of({"val": "x"})))
    ),
    "a schedule of infinity": lambda p, t: with_data(
        p, learning_rate=pickled(_build("stable_baselines3.common.utils:ConstantSchedule", value_of({"val": float("inf")})))
    ),
    # Tensors.
    "code in policy.pth": lambda p, t: zipped({**p, "policy.pth": torch_file(pickled(touching(t)))}),
    "code in policy.optimizer.pth": lambda p, t: zipped(
        {**p, "policy.optimizer.pth": torch_file(pickled(touching(t)))}
    ),
    "code in pytorch_variables.pth": lambda p, t: zipped(
        {**p, "pytorch_variables.pth": torch_file(pickled(touching(t)))}
    ),
    "code in a .pth of the old format": lambda p, t: zipped({**p, "policy.pth": pickled(touching(t))}),
    "a TorchScript in policy.pth": lambda p, t: zipped(
        {**p, "policy.pth": zipped({"archive/data.pkl": pickled(b"}"), "archive/constants.pkl": b"", "archive/code/x.py": b"x"})}
    ),
    "a variable named __class__": lambda p, t: zipped({**p, "pytorch_variables.pth": saved({"__class__": th.nn.Parameter(th.ones(1))})}),
    "a variable named policy": lambda p, t: zipped({**p, "pytorch_variables.pth": saved({"policy.log_std": th.full((3,), 1e30)})}),
    "state dicts with other names": lambda p, t: zipped({**p, "policy.__class__.pth": saved({"a": th.ones(1)})}),
    "a tensor beyond its memory": lambda p, t: zipped(
        {**p, "policy.pth": _weights("log_std", _tensor("FloatStorage", (3,), (1,), 10), _0=b"\0" * 16)}
    ),
    "a tensor that repeats itself": lambda p, t: zipped(
        {**p, "policy.pth": _weights("log_std", _tensor("FloatStorage", (2**35,), (0,)), _0=b"\0" * 16)}
    ),
    "a tensor with a negative stride": lambda p, t: zipped(
        {**p, "policy.pth": _weights("log_std", _tensor("FloatStorage", (3,), (-1,)), _0=b"\0" * 16)}
    ),
    "a tensor without memory": lambda p, t: zipped({**p, "policy.pth": _weights("log_std", _tensor("FloatStorage", (3,), (1,)))}),
    "a .pth on two disks": lambda p, t: zipped({**p, "policy.pth": _on_two_disks(p["policy.pth"])}),
    "complex weights": lambda p, t: _changed_weights(p, lambda state: state.update({"value_net.bias": th.ones(1, dtype=th.complex64)})),
    "NaN weights": lambda p, t: _changed_weights(p, lambda state: state["value_net.bias"].fill_(float("nan"))),
    "infinite weights": lambda p, t: _changed_weights(p, lambda state: state["action_net.weight"].fill_(float("inf"))),
    "weights of another shape": lambda p, t: _changed_weights(p, lambda state: state.update({"value_net.bias": th.ones(7)})),
    "a missing weight": lambda p, t: _changed_weights(p, lambda state: state.pop("value_net.bias")),
    "a weight that is text": lambda p, t: _changed_weights(p, lambda state: state.update({"value_net.bias": "x"})),
    "a state dict that is a list": lambda p, t: zipped({**p, "policy.pth": saved([1])}),
    "an optimiser's rate that is NaN": lambda p, t: _changed_optimiser(p, lambda s: s["param_groups"][0].update(lr=float("nan"))),
    "an optimiser without groups": lambda p, t: _changed_optimiser(p, lambda s: s.pop("param_groups")),
    "an optimiser's state of another shape": lambda p, t: _changed_optimiser(
        p, lambda s: s["state"].update({0: {"step": th.tensor(1.0), "exp_avg": th.ones(99), "exp_avg_sq": th.ones(99)}})
    ),
    # The zip itself.
    "a second data": lambda p, t: _twice(p, "data", with_data(p, seed=1)),
    "a second policy.pth": lambda p, t: _twice(p, "policy.pth", b"x"),
    "a member that inflates without end": lambda p, t: zipped(
        {**p, "data": b" " * 200_000_000 + p["data"]}, compression=zipfile.ZIP_DEFLATED, compresslevel=9
    ),
    "a .pth that inflates without end": lambda p, t: zipped(
        {**p, "policy.pth": zipped({"a/data.pkl": b"\0" * 200_000_000}, compression=zipfile.ZIP_DEFLATED)}
    ),
    "members compressed by bzip2": lambda p, t: zipped(p, compression=zipfile.ZIP_BZIP2),
    "members compressed by LZMA": lambda p, t: zipped(p, compression=zipfile.ZIP_LZMA),
    "encrypted members": lambda p, t: _encrypted(p),
    "twenty thousand members": lambda p, t: zipped({**p, **{f"x{i}": b"" for i in range(20_000)}}),
    "no data": lambda p, t: zipped({name: raw for name, raw in p.items() if name != "data"}),
    "no policy": lambda p, t: zipped({name: raw for name, raw in p.items() if name != "policy.pth"}),
    "no zip": lambda p, t: b"hostile" * 100,
    "half a zip": lambda p, t: zipped(p)[: len(zipped(p)) // 2],
    "an empty file": lambda p, t: b"",
    "another algorithm": lambda p, t: with_data({**p, "data": p["data"].replace(b"line_search_max_iter", b"clip_range")}),
}  # fmt: skip

# Kinds whose hostile part is not what makes a model: it is left out, and the rest opens.
OPENS = {
    "a call in lr_schedule", "env in the JSON", "tensorboard_log in the JSON", "a method in the JSON",
    "private attributes in the JSON", "__class__ in the JSON", "a variable named __class__", "a variable named policy",
    "state dicts with other names", "code in pytorch_variables.pth", "a call in an unknown attribute", "lists that double",
    "a list in itself", "three million instructions", "a hundred nested marks", "hundreds of .pth of zeros",
    "metadata that assigns", "dunder attributes", "last observations of another shape",
    "doubling lists in each of sixty attributes", "a call in a deque",
    "an array that is larger than its bytes", "an array of objects", "an array of records",
    "lists that double as an array's shape", "lists that double as a dtype", "one array many times", "episodes of text",
    "an optimiser whose rate is negative",
}  # fmt: skip


def _cloudpickled(function: Any) -> bytes:
    import cloudpickle

    raw: bytes = cloudpickle.dumps(function)
    return raw


def _cloudpickled_class() -> bytes:
    from stable_baselines3.common.policies import ActorCriticPolicy

    class Hostile(ActorCriticPolicy):
        """Comes with its code."""

    Hostile.__module__ = "__main__"
    return _cloudpickled(Hostile)


def _box_with_nan() -> bytes:
    space = spaces.Box(-1, 1, (4,))
    space.low[0] = np.nan
    return pickle.dumps(space, protocol=4)


def _statistics(trace: str) -> dict[str, bytes]:
    """Files of VecNormalize's statistics."""
    env = VecNormalize(DummyVecEnv([random_env]))
    env.reset()

    def changed(**attributes: Any) -> bytes:
        other = pickle.loads(pickle.dumps(env))
        other.set_venv(DummyVecEnv([random_env]))
        vars(other).update(attributes)
        return pickle.dumps(other)

    nan = pickle.loads(pickle.dumps(env.obs_rms))
    nan.var[0] = np.nan
    wide = pickle.loads(pickle.dumps(env.obs_rms))
    wide.mean = wide.var = np.zeros(9)
    cls = "stable_baselines3.common.vec_env.vec_normalize:VecNormalize"
    return {
        "statistics that call": pickled(call("os:system", f"touch {trace}")),
        "statistics that call within": pickled(_build(cls, b"}(" + text("venv") + call("os:system", f"touch {trace}") + b"u")),
        "statistics that are a list": pickle.dumps([1]),
        "statistics without attributes": pickled(_build(cls, b"}")),
        "statistics that are NaN": changed(obs_rms=nan),
        "statistics of another shape": changed(obs_rms=wide),
        "statistics with a limit of text": changed(clip_obs="x"),
        "statistics that are cut off": pickle.dumps(env)[:100],
    }


def every_kind() -> Iterator[tuple[str, Callable[[str], bytes]]]:
    """Each kind's name, and its file by the path that it tries to touch."""
    parts = base_model()
    # What is imported late is imported now, so that no child does it while it is watched.
    TRPO.load(io.BytesIO(zipped(parts)), device="cpu").predict(np.zeros(4, np.float32))
    for name, make in KINDS.items():
        yield name, partial(make, parts)
    for name in _statistics(""):
        yield name, lambda trace, name=name: _statistics(trace)[name]


def attempt(name: str, content: bytes, algorithm: Any, load_statistics: Callable[..., Any]) -> dict[str, Any]:
    """Open one file in a process of its own: what came of it, what it did, and what it took."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        result: dict[str, Any] = {"outcome": "died"}
        try:
            result = _in_child(name, content, algorithm, load_statistics)
        finally:
            os.write(writing, json.dumps(result).encode()[:60_000])
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        # What it started may hold the pipe open.
        received = pipe.read1() if select.select([pipe], [], [], SECONDS)[0] else b""
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return json.loads(received) if received else {"outcome": "killed", "did": [], "seconds": 0.0, "bytes": 0}


# What Python reports of code that runs commands, opens connections or unpickles; "open" is looked at for writing alone.
WATCHED = {
    "os.system",
    "subprocess.Popen",
    "os.posix_spawn",
    "os.exec",
    "socket.connect",
    "pickle.find_class",
    "ctypes.dlopen",
}


def _in_child(name: str, content: bytes, algorithm: Any, load_statistics: Callable[..., Any]) -> dict[str, Any]:
    did: list[str] = []
    watching = [True]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching[0]:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if event in WATCHED or writes or event in ("os.mkdir", "os.remove", "os.rename", "os.kill", "shutil.rmtree"):
            did.append(f"{event} {str(arguments)[:80]}")

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    sys.addaudithook(watch)
    try:
        if name.startswith("statistics"):
            with tempfile.NamedTemporaryFile(suffix=".pkl", delete=False) as file:
                file.write(content)
            did.clear()
            load_statistics(file.name, DummyVecEnv([random_env]))
        else:
            model = algorithm.load(io.BytesIO(content), device="cpu")
            model.predict(np.zeros(model.observation_space.shape, np.float32))
        outcome, words = "opened", ""
    except BaseException as error:
        outcome, words = type(error).__name__, str(error)[:500]
    watching[0] = False
    return {
        "outcome": outcome,
        "words": words,
        "did": did[:20],
        "seconds": time.monotonic() - started,
        "bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
    }


def attempts() -> dict[str, dict[str, Any]]:
    """Open each kind with this package."""
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number, (name, make) in enumerate(every_kind()):
            trace = Path(folder) / f"trace{number}"
            results[name] = attempt(name, make(str(trace)), TRPO, load_vec_normalize)
            results[name]["trace"] = trace.exists()
    return results


if __name__ == "__main__":
    print(json.dumps(attempts()))
