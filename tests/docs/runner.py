"""
A process that has imported what the pages need, once, and runs each of their pieces in a fork of itself.

It reads tasks from stdin, one JSON object a line, and answers each with its exit status; what a task prints goes to a file.
The parent computes nothing, so that it has no threads that a fork would lose.
"""

import json
import os
import runpy
import sys
import traceback
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from types import ModuleType
from typing import Any, NoReturn
from unittest.mock import patch

import matplotlib

matplotlib.use("Agg")
import rl_zoo3.cli
import sb3_contrib  # noqa: F401  (imported for the pages)
from stable_baselines3.common.logger import TensorBoardOutputFormat  # noqa: F401  (imports TensorBoard)

from sb3_trpo_plus.command_line.main import main

PROGRAMS = {"sb3-trpo-plus": main, "rl_zoo3": rl_zoo3.cli.main}


class Parsed(BaseException):
    """The arguments were understood; nothing was done with them."""


def run_python(sources: list[str], page: str) -> None:
    """The blocks of a page, in the namespace of one ``__main__`` that has no file, as in an interactive session."""
    module = sys.modules["__main__"] = ModuleType("__main__")
    for source in sources:
        exec(compile(source, page, "exec"), module.__dict__)


def run_command(words: list[str]) -> None:
    """A command of ours or of RL Zoo, or ``python`` with a script."""
    if words[0] == "python":
        sys.argv = words[1:]
        sys.path.insert(0, os.path.dirname(words[1]))
        runpy.run_path(words[1], run_name="__main__")
    else:
        sys.argv = list(words)
        PROGRAMS[words[0]]()


def parse_command(words: list[str]) -> None:
    """Only as far as the command's own parser has read its arguments."""
    parse = ArgumentParser.parse_args

    def stop_there(self: ArgumentParser, *args: Any, **kwargs: Any) -> Namespace:
        parse(self, *args, **kwargs)
        raise Parsed

    with patch.object(ArgumentParser, "parse_args", stop_there), suppress(Parsed):
        run_command(words)


TASKS = {"python": run_python, "run": run_command, "parse": parse_command}


def in_a_fork(task: dict[str, Any]) -> NoReturn:
    """Run a task, and end this process."""
    output = os.open(task["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(task["folder"])
    status = 1
    try:
        TASKS[task["kind"]](*task["arguments"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            in_a_fork(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
