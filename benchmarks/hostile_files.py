"""
Hostile model files, opened by this package and by sb3-contrib (statistics by SB3): how many run code, load, or are refused.

The files are those of tests/files/hostile.py, each opened in a process of its own that is watched for commands, connections,
files written and pickle's imports, and is ended after twenty seconds.

    python benchmarks/hostile_files.py            # open what has not been opened yet, write results/hostile_files.csv, print
    python benchmarks/hostile_files.py --table    # only print the table
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results_file
import sb3_contrib
from stable_baselines3.common.vec_env import VecNormalize

import sb3_trpo_plus

RESULTS = Path(__file__).parent / "results" / "hostile_files.csv"
LIBRARIES: dict[str, tuple[Any, Callable[..., Any]]] = {
    "ours": (sb3_trpo_plus.TRPO, sb3_trpo_plus.load_vec_normalize),
    "sb3_contrib": (sb3_contrib.TRPO, VecNormalize.load),
}


def run() -> None:
    """Open each kind with each library, but those that the file of results has."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.files import hostile

    done = {(row["library"], row["kind"]) for row in results_file.read(RESULTS)}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for library, (algorithm, load_statistics) in LIBRARIES.items():
            for kind, make in hostile.every_kind():
                if (library, kind) in done:
                    continue
                trace = Path(folder) / "trace"
                result = hostile.attempt(kind, make(str(trace)), algorithm, load_statistics)
                row = {
                    "library": library,
                    "kind": kind,
                    "outcome": result["outcome"],
                    "did": "; ".join(result["did"][:3]).replace(str(trace), "trace").replace(folder, "."),
                    "left a trace": trace.exists(),
                    "seconds": f"{result['seconds']:.2f}",
                    "MB": f"{result['bytes'] / 2**20:.0f}",
                    **results_file.described(),
                }
                results_file.add(RESULTS, row)
                if trace.is_dir():
                    os.system(f"rm -rf {trace}")
                trace.unlink(missing_ok=True)


def ran(row: dict[str, str]) -> bool:
    """Whether opening a file ran something of the file's, beside looking up what a pickle names."""
    return row["left a trace"] == "True" or any(
        not part.startswith("pickle.find_class") for part in row["did"].split("; ") if part
    )


def print_tables() -> None:
    """One row a library."""
    rows = results_file.read(RESULTS)
    columns = (
        "files",
        "ran something",
        "of those, loaded as if nothing were",
        "ended the process",
        "loaded",
        "refused by name",
    )
    print("| library | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for library in LIBRARIES:
        of_it = [row for row in rows if row["library"] == library]
        opened = [row for row in of_it if row["outcome"] == "opened"]
        ours = [row for row in of_it if row["outcome"] in ("UnsafeFileError", "ModelFileError")]
        ended = [row for row in of_it if row["outcome"] in ("killed", "died", "SystemExit")]
        counts = (len(of_it), sum(map(ran, of_it)), sum(map(ran, opened)), len(ended), len(opened), len(ours))
        print(f"| {library} | " + " | ".join(map(str, counts)) + " |")


if __name__ == "__main__":
    args = results_file.parser(__doc__).parse_args()
    if not args.table:
        run()
    print_tables()
