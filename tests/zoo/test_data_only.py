"""RL Zoo's files as data: what they mean is what RL Zoo makes of them, and what would run is refused."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch as th
import yaml
from rl_zoo3 import exp_manager
from torch import nn

from sb3_trpo_plus.files.errors import ModelFileError, UnsafeFileError
from sb3_trpo_plus.zoo.data_only import WRAPPERS, check_names, expression, read_yaml

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
}


@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_what_is_no_data_is_refused_by_the_files_name(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text(HOSTILE_YAML[kind])
    with pytest.raises(UnsafeFileError, match=r"config\.yml' is refused: it has"):
        read_yaml(tmp_path / "config.yml")
    assert os.listdir(tmp_path) == ["config.yml"]


def test_what_is_no_yaml_is_said_to_be_none(tmp_path: Path) -> None:
    for content in (b"a: [", b"\xff\xfe\x00", b"a: b: c"):
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
        check_names({"env_wrapper": [f"{modules[0]}.{last}"]}, [], "It")
        check_names({"env_wrapper": {f"{modules[0]}.{last}": {"a": 1}}}, [], "It")
    check_names({"env_wrapper": None, "policy": "MlpPolicy", "callback": []}, [], "It")
    check_names({"env_wrapper": "mine.Wrapper", "policy": "mine.deep.Policy"}, ["mine"], "It")
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
                check_names({key: value}, ["mineral_water"], "It")


@pytest.mark.parametrize("last", WRAPPERS)
def test_each_wrapper_of_the_list_exists(last: str) -> None:
    """Under the first of its names; the others are those of former years."""
    import importlib

    assert hasattr(importlib.import_module(WRAPPERS[last][0]), last)


def test_numbers_of_expressions_are_numbers() -> None:
    assert expression("-1e-3") == -1e-3
    assert math.isclose(expression("dict(a=0.1 + 0.2)")["a"], 0.3)
