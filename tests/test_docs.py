"""
The pages keep their word: Python runs, commands are understood by the programs they are for, links and pictures exist.

Numbers that a page writes with an underscore, 100_000, are budgets, and become 2_048. A block that can't be run here says why
in a comment before it: ``% not run: needs the network``, or ``<!-- not run: ... -->`` in the README.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import metadata
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from packaging.requirements import InvalidRequirement, Requirement

from tests.docs.pages import DOCS, ROOT, Block, anchors, blocks, commands, commands_in_prose, links, name_of, pages

Task = Callable[..., None]

# Fenced blocks that are shown: output, files of other programs. Directives are Sphinx's, which checks them in `make docs`.
SHOWN = ("text", "console", "bibtex", "toml")
PROGRAMS = ("sb3-trpo-plus", "rl_zoo3")
UNCHECKED = ("cd", "git", "source")
SEARCH = {"-optimize", "--optimize", "--optimize-hyperparameters"}
# What is appended to a command that is run, so that it soon ends.
SHORTER = {"train": "-n 512 --eval-freq -1", "enjoy": "-n 50 --no-render", "report": "-n 1"}
# Given a number, these read all of their arguments before they look for that run.
NEED_A_RUN = {"enjoy", "report", "record_video", "record_training", "push_to_hub"}

PAGES = pytest.mark.parametrize("page", pages(), ids=name_of)


@pytest.fixture(scope="module")
def runner() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
    command = [sys.executable, "-m", "tests.docs.runner"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def task(runner: subprocess.Popen[str], tmp_path: Path) -> Task:
    """Run a piece of a page in a folder of its own, beside the folders of the repository that pages name."""
    for name in ("benchmarks", "hyperparams"):
        (tmp_path / name).symlink_to(ROOT / name)

    def run(kind: str, *arguments: object) -> None:
        output = tmp_path / "output.txt"
        output.unlink(missing_ok=True)
        assert runner.stdin is not None
        assert runner.stdout is not None
        request = {"kind": kind, "arguments": arguments, "folder": str(tmp_path), "output": str(output)}
        print(json.dumps(request), file=runner.stdin, flush=True)
        status = runner.stdout.readline().strip()
        assert status == "0", f"{arguments} ends with {status}:\n{output.read_text()[-3000:]}"

    return run


@PAGES
def test_python_of_a_page_runs(page: Path, task: Task) -> None:
    sources = [with_lines_of_the_page(block) for block in of(page, "python")]
    runnable = [source for source, block in zip(sources, of(page, "python"), strict=True) if block.not_run is None]
    for source in sources:
        compile(source, page, "exec")
    if runnable:
        task("python", [shortened(source) for source in runnable], str(page))


def with_lines_of_the_page(block: Block) -> str:
    """The code, so far down that a traceback names the page's own lines."""
    return "\n" * (block.line - 1) + block.code


def shortened(source: str) -> str:
    return re.sub(r"\b\d{1,3}(?:_\d{3})+\b", "2_048", source)


@PAGES
def test_commands_of_a_page_run(page: Path, task: Task) -> None:
    trained: set[str] = set()
    for block in of(page, "bash"):
        for words in map(as_program, commands(block.code)):
            if block.not_run is None or words[0] in PROGRAMS:
                check(words, task)
            if block.not_run is None and words[0] in PROGRAMS and runs_here(words, trained):
                task("run", [*words, *SHORTER[words[1]].split()])


@PAGES
def test_commands_in_the_text_of_a_page_are_understood(page: Path, task: Task) -> None:
    for line in commands_in_prose(page.read_text()):
        for words in commands(line):
            words = as_program(words)
            # A command's name alone is no call of it.
            check([*words, "--help"] if words[0] in PROGRAMS and len(words) == 2 else words, task)


def as_program(words: list[str]) -> list[str]:
    return ["sb3-trpo-plus", *words[3:]] if words[:3] == ["python", "-m", "sb3_trpo_plus"] else words


def runs_here(words: list[str], trained: set[str]) -> bool:
    """Trainings run, and what shows their agents or the repository's; searches are left to the parser."""
    env = ([after for word, after in pairwise(words) if word == "--env"] or ["CartPole-v1"])[0]
    if words[1] == "train":
        trained.add(env)
        return not SEARCH & set(words)
    return words[1] in SHORTER and (env in trained or "benchmarks/agents" in words)


def check(words: list[str], task: Task) -> None:
    """Arguments of programs go to their own parsers; targets of the Makefile, extras, modules and files must be there."""
    program, *arguments = words
    if program in PROGRAMS:
        task("parse", [*words, *(["--exp-id", "1"] if set(words[1:2]) & NEED_A_RUN else [])])
    elif program == "python" and arguments[0] != "-m":
        script = ROOT / arguments[0]
        if "parse_args(" in script.read_text():
            task("parse", ["python", str(script), *arguments[1:]])
        else:
            assert arguments[1:] == []
    else:
        right = {"make": make_is_right, "pip": pip_is_right, "python": module_exists}
        assert program in UNCHECKED or right[program](arguments), f"{words} names what is not there"


def make_is_right(arguments: list[str]) -> bool:
    makefile = (ROOT / "Makefile").read_text()
    names = [argument.split("=")[0] for argument in arguments if "=" in argument]
    targets = [argument for argument in arguments if "=" not in argument]
    return all(re.search(rf"(?m)^{re.escape(target)}:", makefile) for target in targets) and all(
        re.search(rf"(?m)^{re.escape(name)} \?=", makefile) for name in names
    )


def pip_is_right(arguments: list[str]) -> bool:
    if arguments[:1] != ["install"]:
        return arguments[0] in ("uninstall", "show", "freeze")
    for option, argument in pairwise(arguments):
        if argument.startswith("-") or option in ("-i", "--index-url"):
            continue
        if option in ("-c", "-r"):
            if not (ROOT / argument).is_file():
                return False
        elif not requirement_is_right(re.sub(r"^\.(?=\[|$)", "sb3-trpo-plus", argument)):
            return False
    return True


def requirement_is_right(text: str) -> bool:
    if re.fullmatch(r"\S+\.whl", text):
        return True
    try:
        requirement = Requirement(text.replace("git+", "sb3-trpo-plus @ git+", 1) if text.startswith("git+") else text)
    except InvalidRequirement:
        return False
    return requirement.name != "sb3-trpo-plus" or requirement.extras <= extras()


@cache
def extras() -> set[str]:
    return set(metadata("sb3-trpo-plus").get_all("Provides-Extra") or [])


def module_exists(arguments: list[str]) -> bool:
    return importlib.util.find_spec(arguments[1]) is not None


@pytest.mark.parametrize(
    "line",
    [
        "sb3-trpo-plus trian --env CartPole-v1",
        "sb3-trpo-plus train --environment CartPole-v1",
        "sb3-trpo-plus enjoy --env CartPole-v1 --no-rendering",
        "rl_zoo3 train --algo no_algorithm",
        "sb3-trpo-plus enable everywhere",
        "python benchmarks/returns.py --tables",
        "python benchmarks/no_benchmark.py",
        "python -m no_module",
        "make no-target",
        "make train ENVIRONMENT=CartPole-v1",
        "pip install 'sb3-trpo-plus[no_extra]'",
        "pip install -c no_file.txt '.[envs]'",
        "no-program",
    ],
)
def test_wrong_commands_are_found(line: str, task: Task) -> None:
    (words,) = commands(line)
    with pytest.raises((AssertionError, KeyError, FileNotFoundError)):
        check(words, task)


def test_python_that_raises_is_found(task: Task) -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        task("python", ["1 / 0"], "page")


@PAGES
def test_blocks_are_of_a_kind_that_is_checked(page: Path) -> None:
    for block in blocks(page.read_text()):
        assert block.language in ("python", "bash", "yaml", *SHOWN) or block.language.startswith("{"), block
        assert block.not_run is None or len(block.not_run.split()) > 1, f"no reason why it is not run: {block}"
        if block.language == "yaml":
            yaml.safe_load(block.code)


@PAGES
def test_rl_zoo_knows_our_algorithms_where_a_page_calls_it(page: Path) -> None:
    calls = [words for block in of(page, "bash") for words in commands(block.code) if words[0] == "rl_zoo3"]
    if any("sb3_trpo_plus.zoo" not in words for words in calls):
        assert "sb3-trpo-plus enable" in page.read_text()


@PAGES
def test_links_and_pictures_exist(page: Path) -> None:
    for link in links(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text()), link


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = [
        line
        for page in DOCS.rglob("*.md")
        for block in blocks(page.read_text())
        if block.language == "{toctree}"
        for line in block.code.splitlines()
        if line and not line.startswith(":")
    ]
    there = [str(page.relative_to(DOCS).with_suffix("")) for page in pages() if page.is_relative_to(DOCS)]
    assert sorted(listed) == sorted(set(there) - {"index"})


def of(page: Path, language: str) -> list[Block]:
    return [block for block in blocks(page.read_text()) if block.language == language]
