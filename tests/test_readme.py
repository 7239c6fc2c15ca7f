"""The README's examples run, its links lead somewhere, and each table is the one that a benchmark prints."""

import csv
import math
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from sb3_trpo_plus import TRPO, PPOPenalty

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# A page of a package index has no folder that links could be relative to.
OURS = (
    "https://github.com/sb3-trpo-plus/sb3-trpo-plus/blob/main/",
    "https://github.com/sb3-trpo-plus/sb3-trpo-plus/tree/main/",
    "https://raw.githubusercontent.com/sb3-trpo-plus/sb3-trpo-plus/main/",
)
# Where each table of a script is, in the order in which it prints them.
TABLES = {
    "returns": [
        ("docs/returns_appendix.md",),
        ("docs/returns.md",),
        ("docs/returns.md",),
        ("docs/returns_appendix.md",),
        ("docs/returns_appendix.md",),
        ("README.md", "docs/returns.md"),
        ("docs/agents.md",),
    ],
    "first_run": [("docs/returns_appendix.md",)],
    "returns_ablation": [("docs/returns_appendix.md",)],
    "gradient_noise": [("docs/returns_appendix.md",)],
    "published_agents": [("docs/agents.md",)],
    "speed": [("docs/performance.md",), ("docs/performance.md",)],
    "cheaper_step": [("docs/performance.md",), ("docs/performance.md",)],
    "family": [("docs/family.md",)],
    "vine": [("docs/vine.md",), ("docs/vine.md",)],
    "fisher": [("docs/trust_region.md",)],
    "tabular": [("docs/tabular.md",)],
    "kill_while_saving": [("docs/reliability.md",)],
    "resumed_runs": [("docs/reliability.md",)],
}


def python_examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train, load, _ = python_examples(README)
    exec(train, {})
    assert (tmp_path / "cartpole.zip").is_file()
    exec(load, {})


def test_example_with_an_old_model_runs(
    zoo_agents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(zoo_agents)
    exec(python_examples(README)[2], {})
    assert float(re.findall(r"[\d.]+", capsys.readouterr().out.replace("np.float64", ""))[0]) > 3400


def test_example_of_an_entry_is_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = python_examples((ROOT / "docs" / "returns.md").read_text())
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


def test_readme_is_short() -> None:
    assert len(README.encode()) <= 5_500


def test_links_and_pictures_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)|<img[^>]* src=\"([^\"]+)\"", README)
    paths = [in_repository(one or other) for one, other in targets]
    here = [path for path in paths if path is not None]
    assert len(here) > 3
    assert [path for path in here if not (ROOT / path).exists()] == []


def in_repository(target: str) -> str | None:
    """The path that a link leads to, from the root of the repository; None for a link to elsewhere."""
    for start in OURS:
        if target.startswith(start):
            return target.removeprefix(start)
    return None if target.startswith(("https:", "http:")) else target


def test_speed_in_the_readme_is_what_was_measured() -> None:
    with (ROOT / "benchmarks" / "results" / "speed.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["threads"] == "1" and row["bare_seconds"]]
    seconds = {(row["workload"], row["variant"]): float(row["seconds"]) for row in rows}
    factors = [seconds[workload, "sb3_contrib"] / seconds[workload, "ours"] for workload in {row["workload"] for row in rows}]
    assert len(factors) > 3
    rounded_down = [math.floor(10 * factor) / 10 for factor in (min(factors), max(factors))]
    said = re.findall(r"([\d.]+) to ([\d.]+) times\s+faster", README)
    assert [[float(factor) for factor in pair] for pair in said] == [rounded_down]


@cache
def tables_of(script: str) -> list[str]:
    """What a benchmark's command prints of its results, without running it."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--table"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"(?:\|.*\n)+", printed)


@pytest.mark.parametrize("script", TABLES)
def test_tables_are_current(script: str) -> None:
    for table, pages in zip(tables_of(script), TABLES[script], strict=True):
        for page in pages:
            assert table in (ROOT / page).read_text(), page


def cells_of(table: str) -> list[list[str]]:
    """The cells of a Markdown table's rows, without its head."""
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]


def test_members_are_chosen_by_the_table_of_the_family() -> None:
    page = (ROOT / "docs" / "choosing.md").read_text()
    measured: dict[str, list[str]] = {}
    for _, member, _, _, solved, after, _ in cells_of(tables_of("family")[0]):
        measured.setdefault(member, []).append(f"{solved.split()[0]}, {after}")
    assert len(measured) > 6
    for member, figures in measured.items():
        name, _, argument = member.partition(", ")
        start = f"| `{name}({argument})` |" if argument else f"| `{name}` |"
        assert f"{start} {' | '.join(figures)} |" in page


def test_peers_are_chosen_by_the_table_of_returns() -> None:
    def in_words(figure: str) -> str:
        return re.sub(r"[\d.]+", lambda number: f"{float(number[0]):.0f}", figure)

    page = (ROOT / "docs" / "choosing.md").read_text()
    rows = {cells[0]: cells for cells in cells_of(tables_of("returns")[0])}
    compared = [env_id for env_id, cells in rows.items() if cells[7]]
    assert len(compared) == 3
    for env_id in compared:
        assert f"| {env_id} | {in_words(rows[env_id][4])} | {in_words(rows[env_id][7])} |" in page


def test_entries_say_what_they_reached() -> None:
    measured = [(cells[0], cells[3], cells[1]) for cells in cells_of(tables_of("returns")[0]) if cells[3]]
    assert len(measured) > 10
    entries = (ROOT / "hyperparams" / "trpo.yml").read_text()
    for env_id, result, steps in measured:
        assert re.search(rf"(?m)^# {re.escape(result)} after {steps} steps \(.*\)\.\n{env_id}:", entries), env_id


def test_logged_tags_are_explained() -> None:
    page = (ROOT / "docs" / "logs.md").read_text()
    explained = {tag for row in re.findall(r"(?m)^\| (`train/.*?) \|", page) for tag in re.findall(r"train/\w+", row)}
    logged = {"train/skipped_CAUSE"}
    for model in (
        TRPO("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=64, log_improvement_bound=True),
        PPOPenalty("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=64),
    ):
        model.learn(64, log_interval=2)
        logged |= {tag for tag in model.logger.name_to_value if tag.startswith("train/")}
    assert explained == logged
