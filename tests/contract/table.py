"""
The contract as a page of the documentation.

    python -m tests.contract.table > docs/contract.md
"""

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

HEAD = """# What "the same" means

People change one import, and what worked with `sb3_contrib.TRPO` works. Each line below is a program in `tests/contract`
that runs with `sb3_contrib.TRPO` and with each member of the family, most of them for several spaces, policies or hooks; the
results must be equal. Where sb3-contrib does not do what SB3's documentation says, the line says so, and the members do.

This page is made by `python -m tests.contract.table`.
"""

TAIL = """## Libraries that drive an SB3 algorithm

[imitation](https://imitation.readthedocs.io)'s GAIL, AIRL and preference comparisons run with each member as the generator.
`benchmarks/imitation_learning.py` installs imitation 1.0.1 into an environment of its own; its results are in
`benchmarks/results/imitation.csv`, and `--table` prints them. GAIL on CartPole-v1, the same program with three generators:

![GAIL's learning curve](images/imitation.png)

Ten seeds, with episodes of a fixed length, as any positive reward teaches CartPole otherwise: the mean of a run is 329 ± 40
(standard deviation over the seeds) with ours, 346 ± 34 with sb3-contrib's TRPO and 235 with PPO, whose settings were not tuned
for it. Over the last ten evaluations ours has 441 ± 78 and sb3-contrib's 485 ± 27: three of our ten runs forget for a while,
which is what chance may do (Welch's t = 1.7). AIRL and preference comparisons have one seed each, to see that they run.

What is not the same is in [the algorithm](algorithm.md): sb3-contrib's methods `_compute_actor_grad` and
`hessian_vector_product`, which a subclass may override there, are not called here, and a subclass that has one is told so.
"""


def modules() -> list[ModuleType]:
    """Those whose cases were made by ``contract``."""
    names = sorted(file.stem for file in Path(__file__).parent.glob("test_*.py"))
    return [importlib.import_module(f"tests.contract.{name}") for name in names]


def cases(module: ModuleType) -> list[Any]:
    """In the order in which they stand in the file."""
    found = [test for test in vars(module).values() if hasattr(test, "promise") and test.__module__ == module.__name__]
    return sorted(found, key=lambda test: inspect.getsourcelines(inspect.unwrap(test))[1])


def in_one_line(text: str | None) -> str:
    """As a cell of a table."""
    return " ".join((text or "").replace("|", "\\|").replace("``", "`").split())


def row(test: Any) -> str:
    """Of the table."""
    promise = test.promise
    contrib = "" if promise.kept_by_contrib else "does not"
    without = "; ".join(f"{member.__name__}: {reason}" for member, reason in promise.without)
    return f"| {in_one_line(test.__doc__)} | {contrib} | {without} |"


def page() -> str:
    """In Markdown."""
    lines = [HEAD]
    for module in modules():
        found = cases(module)
        if found:
            title, _, rest = in_one_line(module.__doc__).partition(":")
            lines += [f"## {title}", "", rest.strip().capitalize(), ""] if rest else [f"## {title}", ""]
            lines += ["| promise | sb3-contrib | left out |", "|---|---|---|", *map(row, found), ""]
    return "\n".join([*lines, TAIL])


if __name__ == "__main__":
    print(page(), end="")
