"""RL Zoo's files as data: what they mean is what RL Zoo makes of them, and what would run is refused."""

import importlib
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch as th
import yaml
from rl_zoo3 import exp_manager
from torch import nn

from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.zoo.data_only import FORMER, MOST, WRAPPERS, check_zip, checked, expression, read_yaml

ROOT = Path(__file__).parents[2]
OF_THE_ZOO = Path(exp_manager.__file__).parent / "hyperparams"
FILES = [*ROOT.glob("hyperparams/*.yml"), *ROOT.glob("benchmarks/agents/**/*.yml"), *OF_THE_ZOO.glob("*.yml")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-2:]))
def test_real_files_mean_what_they_mean_to_rl_zoo(path: Path) -> None:
    assert read_yaml(path) == yaml.load(path.read_text(), yaml.UnsafeLoader)


def test_files_of_2021_mean_what_they_mean_to_rl_zoo(zoo_agents: Path) -> None:
    paths = list(zoo_agents.glob("*/*.yml"))
    assert len(paths) >= 18
    for path in paths:
        assert read_yaml(path) == yaml.load(path.read_text(), yaml.UnsafeLoader)


def test_a_tuple_of_the_command_line_comes_back(tmp_path: Path) -> None:
    arguments = {"env_kwargs": {"size": (3, 4)}}
    (tmp_path / "args.yml").write_text(yaml.dump(arguments))
    assert read_yaml(tmp_path / "args.yml") == arguments


def test_aliases_and_merges_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("d: &d {n: 1, m: &m [2, 3]}\ne: {<<: *d, n: 4}\nf: {<<: [*d, {k: 5}], l: *m}\n")
    assert read_yaml(tmp_path / "a.yml") == {
        "d": {"n": 1, "m": [2, 3]},
        "e": {"n": 4, "m": [2, 3]},
        "f": {"n": 1, "m": [2, 3], "k": 5, "l": [2, 3]},
    }


def that_double(first: str, again: str) -> str:
    """Forty values, each with the one before it twice."""
    return "".join([f"a0: &a0 {first}\n", *(f"a{i}: &a{i} {again.replace('*', f'*a{i - 1}')}\n" for i in range(1, 40))])


ORDERED = "!!python/object/apply:collections.OrderedDict"
TUPLES = that_double("!!python/tuple []", "!!python/tuple [*, *]")


def test_a_class_of_the_command_line_comes_back(tmp_path: Path) -> None:
    settings = {"policy_kwargs": {"activation_fn": nn.ReLU, "optimizer_class": th.optim.SGD, "net_arch": [8]}}
    (tmp_path / "config.yml").write_text(yaml.dump(settings))
    assert read_yaml(tmp_path / "config.yml") == settings


HOSTILE_YAML = {
    "a call": "!!python/object/apply:os.system ['touch trace']",
    "a new object": "!!python/object/new:subprocess.Popen [['touch', 'trace']]",
    "a name": "x: !!python/name:os.system",
    "a module": "x: !!python/module:os",
    "an object": "x: !!python/object:os._wrap_close {}",
    "a call inside an OrderedDict": (
        "!!python/object/apply:collections.OrderedDict [[[a, !!python/object/apply:os.system ['touch trace']]]]"
    ),
    "an alias in itself": "x: &x [*x]",
    "lists that double": "\n".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" if i else "a0: &a0 [1]" for i in range(40)),
    "merges that double": "\n".join(
        f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" if i else "a0: &a0 {b: 1}" for i in range(40)
    ),
    "nested deep": "[" * 2000 + "]" * 2000,
    "two megabytes": "x: " + "y" * 2**21,
    "a tuple that doubles as a key": TUPLES + "k:\n  ? *a39\n  : 1\n",
    "a tuple that doubles in a set": TUPLES + "k: !!set\n  ? *a39\n",
    "a tuple as a key": "? !!python/tuple [1]\n: 1",
    "an OrderedDict with a list that doubles as a key": that_double("[]", "[*, *]") + f"k: {ORDERED} [[[*a39, 1]]]",
    "an OrderedDict with a number as a key": f"{ORDERED} [[[3, 1]]]",
    "merges of many keys": (
        "a: &a {" + ",".join(f"k{i}: 0" for i in range(2000)) + "}\n" + "".join(f"b{i}: {{<<: *a}}\n" for i in range(500))
    ),
    "a hundred kilobytes of parts": "a: [" + "a," * 50_000 + "]",
    "a number in base 60": "a: 1" + ":59" * 40_000,
    "a fraction in base 60": "a: 1" + ":59" * 1000 + ".5",
    "a long number": "a: 0x" + "f" * 1000,
    "a long text, often": 'a: &a "' + "x" * 50_000 + '"\nb: [' + "*a," * 10_000 + "]",
}


@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_what_is_no_data_is_refused_by_the_files_name(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text(HOSTILE_YAML[kind])
    with pytest.raises(UnsafeFileError, match=r"config\.yml' is refused: it has"):
        read_yaml(tmp_path / "config.yml")
    assert os.listdir(tmp_path) == ["config.yml"]


def test_what_is_no_yaml_is_said_to_be_none(tmp_path: Path) -> None:
    wrong = (b"x: !!int ''", b"x: !!bool maybe", b"x: !!timestamp never", b"x: 2024-99-99", b"x: !!float a")
    for content in (b"a: [", b"\xff\xfe\x00", b"a: b: c", *wrong):
        (tmp_path / "config.yml").write_bytes(content)
        with pytest.raises(ModelFileError, match=r"config\.yml' is no YAML file"):
            read_yaml(tmp_path / "config.yml")


EXPRESSIONS = [
    "dict(log_std_init=-2, ortho_init=False, activation_fn=nn.ReLU, net_arch=dict(pi=[256, 256], vf=[256, 256]))",
    "dict(net_arch=[64, 64])",
    "{'norm_obs': True, 'norm_reward': False, 'clip_obs': 10.}",
    "dict(optimizer_class=th.optim.RMSprop, optimizer_kwargs=dict(alpha=0.99, eps=1e-5, weight_decay=0))",
    "dict(squash_output=True, sizes=(1, 2), name='x', nothing=None, half=1 / 2, more=2 * 3 + 4 - 1)",
    "dict()",
]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expressions_have_the_value_that_python_gives_them(text: str) -> None:
    assert expression(text) == eval(text, {"nn": nn, "th": th})


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch trace')",
        "dict(a=open('trace', 'w'))",
        "dict(activation_fn=nn.Module)",
        "dict(activation_fn=nn.modules.activation.sys)",
        "dict(f=lambda x: x)",
        "[x for x in (1, 2)]",
        "dict(**{'a': 1})",
        "dict([('a', 1)])",
        "(1).__class__",
        "f'{1}'",
        "9 ** 9 ** 9",
        "'a' * 10 ** 10",
        "True * 10",
        "1 if 1 else 2",
        "dict(a=1",
        "",
        "(" * 500,
        "1 / 0",
        "x" * 20_000,
        "b'x'",
        "1j",
    ],
)
def test_expressions_that_are_more_than_data_are_refused(text: str) -> None:
    with pytest.raises(UnsafeFileError, match=r"is refused: it .*--trust"):
        expression(text)


def test_wrappers_are_those_of_the_list_or_of_the_users_packages() -> None:
    for last, modules in WRAPPERS.items():
        checked({"env_wrapper": [f"{modules[0]}.{last}"]}, [], "It")
        checked({"env_wrapper": {f"{modules[0]}.{last}": {"a": 1}}}, [], "It")
    checked({"env_wrapper": None, "policy": "MlpPolicy", "callback": []}, [], "It")
    checked({"env_wrapper": "mine.Wrapper", "policy": "mine.deep.Policy"}, ["mine"], "It")
    hostile: dict[str, Any] = {
        "env_wrapper": [
            "os.system",
            [{"subprocess.Popen": {}}],
            "mine.Wrapper",
            "gymnasium.wrappers.RecordVideo",
            "ClipAction",
            3,
        ],
        "vec_env_wrapper": ["stable_baselines3.common.vec_env.VecVideoRecorder"],
        "callback": ["stable_baselines3.common.callbacks.CheckpointCallback", "os.system"],
        "policy": ["os.system", 3, "mineral.Policy"],
    }
    for key, values in hostile.items():
        for value in values:
            with pytest.raises(UnsafeFileError, match=rf"It is refused: its {key} is .*--gym-packages.*--trust"):
                checked({key: value}, ["mineral_water"], "It")


@pytest.mark.parametrize("last", WRAPPERS)
def test_each_wrapper_of_the_list_exists(last: str) -> None:
    for module in WRAPPERS[last]:
        assert hasattr(importlib.import_module(module), last)


def test_wrappers_with_names_of_former_years_get_those_of_today() -> None:
    """So that no folder `utils` or `gym` of the current folder is imported."""
    given = {
        "env_wrapper": ["utils.wrappers.HistoryWrapper", {"gym.wrappers.TimeLimit": {"max_episode_steps": 3}}],
        "vec_env_wrapper": None,
        "policy": "MlpPolicy",
    }
    today = ["rl_zoo3.wrappers.HistoryWrapper", {"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 3}}]
    assert checked(given, [], "It") == {**given, "env_wrapper": today}
    assert checked({"env_wrapper": "utils.wrappers.FrameSkip"}, [], "It") == {"env_wrapper": "rl_zoo3.wrappers.FrameSkip"}
    of_the_user = {"env_wrapper": "utils.wrappers.Mine"}
    assert checked(of_the_user, ["utils"], "It") == of_the_user
    assert not any(module in FORMER for modules in WRAPPERS.values() for module in modules)


def test_what_a_file_asks_for_has_bounds() -> None:
    wrapped = {"n_stack": "stable_baselines3.common.vec_env.VecFrameStack", "horizon": "rl_zoo3.wrappers.HistoryWrapper"}
    for value in (300_000_000, math.inf, math.nan, "300000000", [4]):
        for key in MOST:
            with pytest.raises(UnsafeFileError, match=rf"It is refused: its {key} is .*--trust"):
                checked({key: value}, [], "It")
        for name, wrapper in wrapped.items():
            with pytest.raises(UnsafeFileError, match=rf"It is refused: its {name} is .*--trust"):
                checked({"env_wrapper": [{wrapper: {name: value}}]}, [], "It")
    usual = {"frame_stack": 4, "n_envs": 16, "env_wrapper": {wrapped["horizon"]: {"horizon": 2}}}
    assert checked(usual, [], "It") == usual
    assert checked({"frame_stack": None}, [], "It") == {"frame_stack": None}


def test_arguments_of_the_environment_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").touch()
    for value in ("/etc/hostname", "a\\b", "secret", b"/etc/hostname", ["x", {"y": ("secret",)}], {"secret": 1}, {"secret"}):
        with pytest.raises(UnsafeFileError, match=r"It is refused: its env_kwargs have .*--trust"):
            checked({"env_kwargs": {"xml_file": value}}, [], "It")
    plain = {
        "env_kwargs": {"map_name": "8x8", "slippery": False, "sizes": [1, 2.5, None], "obs_type": "ram", "long": "x" * 9999}
    }
    assert checked(plain, [], "It") == plain


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_zips_are_checked_before_they_are_extracted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.zip"
    check_zip(zipped(path, {"monitor.csv": b"0" * 2**20, "folder/evaluations.npz": b""}))
    check_zip(zipped(path, {"noise": os.urandom(2**21)}))
    with pytest.raises(UnsafeFileError, match=r"metrics\.zip' is refused: it grows from [\d,]+ to 2,097,152 bytes"):
        check_zip(zipped(path, {f"{i}.csv": b"0" * 2**19 for i in range(4)}))
    for name in ("../a", "/a", "a/../../b", "C:a", "..\\a"):
        with pytest.raises(UnsafeFileError, match="is outside of the folder"):
            check_zip(zipped(path, {name: b""}))
    with pytest.raises(UnsafeFileError, match="by a method"):
        check_zip(zipped(path, {"a": b""}, zipfile.ZIP_BZIP2))
    path.write_bytes(b"PK")
    with pytest.raises(ModelFileError, match="is not a whole zip"):
        check_zip(path)


def test_numbers_of_expressions_are_numbers() -> None:
    assert expression("-1e-3") == -1e-3
    assert math.isclose(expression("dict(a=0.1 + 0.2)")["a"], 0.3)
