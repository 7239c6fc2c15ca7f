"""The examples in Python run, in their order, and the tables are those that the benchmarks print."""

import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train, load, _ = EXAMPLES
    exec(train, {})
    assert (tmp_path / "cartpole.zip").is_file()
    exec(load, {})


def test_example_of_an_entry_is_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "returns.md").read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(example.replace("1_000_000", "2_048"), names)
    assert (tmp_path / "half_cheetah.zip").is_file()
    assert (tmp_path / "vecnormalize.pkl").is_file()

    entry = yaml.safe_load((ROOT / "hyperparams" / "trpo.yml").read_text())["default"]
    model = names["model"]
    schedules = {name: f"lin_{getattr(model, name)(1.0):g}" for name in ("target_kl", "ent_coef")}
    given = {"n_envs": model.n_envs, "n_steps": model.n_steps, "cg_damping": model.cg_damping, **schedules}
    given["policy_kwargs"] = f"dict(log_std_init={model.policy_kwargs['log_std_init']})"
    module, _, name = entry["env_wrapper"].rpartition(".")
    assert names["unit_actions"] is getattr(import_module(module), name)
    given["env_wrapper"] = entry["env_wrapper"]
    assert entry == given | {"normalize": True, "policy": "MlpPolicy", "n_timesteps": 1e6}
    assert model.target_kl(0.5) == pytest.approx(0.015)
    assert model.ent_coef(0.0) == 0.0


def test_example_with_an_old_model_runs(
    zoo_agents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(zoo_agents)
    exec(EXAMPLES[2], {})
    assert float(re.findall(r"[\d.]+", capsys.readouterr().out.replace("np.float64", ""))[0]) > 3400


def test_links_and_pictures_exist() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(targets) > 3
    assert [target for target in targets if not (ROOT / target).exists()] == []


@cache
def tables_of(script: str) -> list[str]:
    """What a benchmark's command prints of its results, without running it."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--table"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"(?:\|.*\n)+", printed)


@pytest.mark.parametrize("script", ["first_run", "speed", "returns"])
def test_tables_of_the_readme_are_current(script: str) -> None:
    assert tables_of(script)[0] in README


@pytest.mark.parametrize(
    ("script", "page", "n_tables"),
    [
        ("speed", "performance", 2),
        ("cheaper_step", "performance", 2),
        ("gradient_noise", "returns", 1),
        ("returns", "returns", 5),
        ("returns_ablation", "returns", 1),
        ("family", "family", 1),
        ("vine", "vine", 2),
        ("fisher", "trust_region", 1),
        ("tabular", "tabular", 1),
    ],
)
def test_tables_of_a_page_are_current(script: str, page: str, n_tables: int) -> None:
    assert len(tables_of(script)) == n_tables
    for table in tables_of(script):
        assert table in (ROOT / "docs" / f"{page}.md").read_text()


def test_entries_say_what_they_reached() -> None:
    rows = tables_of("returns")[0].splitlines()[2:]
    measured = [(cells[1], cells[4], cells[2]) for cells in (re.split(r" ?\| ?", row) for row in rows) if cells[4]]
    assert len(measured) > 10
    entries = (ROOT / "hyperparams" / "trpo.yml").read_text()
    for env_id, result, steps in measured:
        assert re.search(rf"(?m)^# {re.escape(result)} after {steps} steps \(.*\)\.\n{env_id}:", entries), env_id
