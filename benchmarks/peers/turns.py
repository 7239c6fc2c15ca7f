"""A library on one workload, in a process of its own: it learns when it is told to, and says how long that took."""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch as th


def take(prepare: Callable[[dict[str, Any]], Callable[[int], object]]) -> None:
    """
    Answer on standard output, in lines of JSON: the versions of packages, after a first ``learn`` that warms up, and then for
    each line of standard input, a number of steps, the seconds that ``learn`` took.

    :param prepare: makes, of the task that the command line's argument is (throughput.py, ``Process``), what learns for a
        number of steps, of all environments together
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    task = json.loads(sys.argv[1])
    th.set_num_threads(1)
    learn = prepare(task)
    learn(task["n_envs"] * task["n_steps"])
    print(json.dumps({package: version(package) for package in task["packages"]}), file=answers, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        learn(int(line))
        print(json.dumps(time.perf_counter() - start), file=answers, flush=True)
