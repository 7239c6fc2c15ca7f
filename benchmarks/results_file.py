"""CSV files of results, one row a run, to which runs are added as they end, and the command line of what adds them."""

import argparse
import csv
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from tqdm import tqdm

import sb3_trpo_plus

Result = TypeVar("Result")


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a file; none if there is no such file."""
    if not file.is_file():
        return []
    with file.open() as stream:
        return list(csv.DictReader(stream))


def add(file: Path, row: dict[str, Any]) -> None:
    """A row at the end, under a header if it is the first."""
    is_new = not file.is_file()
    file.parent.mkdir(exist_ok=True)
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, row, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def described() -> dict[str, str]:
    """Version and machine, for the columns of a row that was made on one thread."""
    machine = f"{platform.machine()}, Python {platform.python_version()}, torch {th.__version__}, 1 thread"
    return {"version": sb3_trpo_plus.__version__, "machine": machine}


def parser(doc: str | None) -> argparse.ArgumentParser:
    """
    The command line of a benchmark whose runs are resumable.

    :param doc: the benchmark's, for its help
    """
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", type=int, default=2, help="runs at a time")
    options.add_argument("--table", action="store_true", help="only print what is there")
    return options


def carry_out(
    args: argparse.Namespace, run: Callable[[], None], draw: Callable[[], None], print_tables: Callable[[], None]
) -> None:
    """
    What the command line of a benchmark with a picture asks for: all, only the tables, or only the picture.

    :param args: with ``table`` and ``draw``
    :param run: computes what is missing
    :param draw: the picture
    :param print_tables: of what is there
    """
    if args.draw:
        draw()
        return
    if not args.table:
        run()
        draw()
    print_tables()


def run_all(file: Path, train: Callable[[Any], dict[str, Any]], runs: Sequence[Any], jobs: int) -> None:
    """
    A row for each run, in the order in which they end.

    :param file: to be added to
    :param train: makes the row of a run, in a process of its own
    :param runs: that have no row yet
    :param jobs: runs at a time
    """
    for row in in_processes(train, runs, jobs):
        add(file, row)


def in_processes(train: Callable[[Any], Result], runs: Sequence[Any], jobs: int) -> Iterator[Result]:
    """What each run gives, in the order in which they end, with a progress bar; until one fails; arguments as above."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(train, run) for run in runs]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), unit="run", disable=not runs):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
