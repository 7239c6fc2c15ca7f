"""The commands of RL Zoo and of this package, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# `make` opts in for the environment that runs these tests; without the module that it wrote, each way must stand on its own.
WITHOUT_OPT_IN = "import sys; sys.modules['custom_envs'] = None; from {} import main; main()"
RL_ZOO = [sys.executable, "-c", WITHOUT_OPT_IN.format("rl_zoo3.cli")]
OURSELVES = [sys.executable, "-c", WITHOUT_OPT_IN.format("sb3_trpo_plus.command_line.main")]
REGISTERED = ["--gym-packages", "sb3_trpo_plus.zoo"]
OURS = "TRPO of sb3_trpo_plus"


def run(*command: Any, cwd: Path, fails: bool = False) -> str:
    """Run a command as a user would, in a folder of its own, and return what it printed."""
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert (outcome.returncode != 0) == fails, outcome.stdout + outcome.stderr
    return outcome.stdout + outcome.stderr
