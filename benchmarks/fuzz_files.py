"""
A long fuzz of model files: mutations of real ones, of the zip, a member, an attribute or a pickle (tests/files/mutations.py).

Each batch of mutations is opened in a process of its own whose memory is measured. Anything but a model with finite parameters
or a ModelFileError is a failure, whose number is written down, by which it is made again.

    python benchmarks/fuzz_files.py --batches 100    # 100 batches of 500 more, added to results/fuzz_files.csv, and the table
    python benchmarks/fuzz_files.py --table          # only print the table
"""

import collections
import io
import random
import resource
import sys
import time
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import results_file

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO
from sb3_trpo_plus.files.errors import ModelFileError

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "fuzz_files.csv"
BATCH = 500
FAMILY: dict[str, tuple[Any, dict[str, Any]]] = {
    "TRPO": (TRPO, {"use_sde": True}),
    "NPG": (NPG, {}),
    "PPOPenalty": (PPOPenalty, {}),
    "VineTRPO": (VineTRPO, {"n_rollout_states": 2, "rollout_length": 4}),
}


def batch(number: int) -> dict[str, Any]:
    """The outcomes of the mutations of one batch."""
    sys.path.insert(0, str(ROOT))
    from tests.files.mutations import mutated
    from tests.files.test_fuzz import model_file

    warnings.simplefilter("ignore")
    name = list(FAMILY)[number % len(FAMILY)]
    cls, kwargs = FAMILY[name]
    real = model_file(cls, **kwargs)
    cls.load(io.BytesIO(real), device="cpu")
    before, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
    outcomes: collections.Counter[str] = collections.Counter()
    failures = []
    for index in range(BATCH):
        file, started = mutated(real, random.Random(f"{number} {index}")), time.perf_counter()
        try:
            model = cls.load(io.BytesIO(file), device="cpu")
            is_finite = all(parameter.isfinite().all() for parameter in model.policy.parameters())
            outcomes["opened" if is_finite else "failed"] += 1
        except ModelFileError:
            outcomes["refused"] += 1
        except Exception as error:
            outcomes["failed"] += 1
            failures.append(f"{index}: {type(error).__name__}")
        slowest = max(slowest, time.perf_counter() - started)
    return {
        "batch": number,
        "algorithm": name,
        **{outcome: outcomes[outcome] for outcome in ("opened", "refused", "failed")},
        "slowest, s": f"{slowest:.3f}",
        "memory, MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
        "failures": "; ".join(failures),
        **results_file.described(),
    }


def print_table() -> None:
    """One row an algorithm."""
    rows = results_file.read(RESULTS)
    print("| files of | mutations | opened | refused | failed | slowest | most memory |")
    print("|---|---|---|---|---|---|---|")
    for name in FAMILY:
        of_it = [row for row in rows if row["algorithm"] == name]
        if of_it:
            opened, refused, failed = (sum(int(row[key]) for row in of_it) for key in ("opened", "refused", "failed"))
            slowest = max(float(row["slowest, s"]) for row in of_it)
            memory = max(int(row["memory, MB"]) for row in of_it)
            total = opened + refused + failed
            print(f"| {name} | {total:,} | {opened:,} | {refused:,} | {failed:,} | {slowest:.2f} s | {memory} MB |")


if __name__ == "__main__":
    parser = results_file.parser(__doc__)
    parser.add_argument("--batches", type=int, default=20, help=f"of {BATCH} mutations")
    args = parser.parse_args()
    if not args.table:
        first = len(results_file.read(RESULTS))
        with get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
            for row in pool.imap(batch, range(first, first + args.batches)):
                results_file.add(RESULTS, row)
    print_table()
