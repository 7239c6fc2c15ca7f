"""
The opt-in that makes the plain ``rl_zoo3`` command run this package's algorithms.

RL Zoo imports a module named ``custom_envs``, if there is one, so that users can register environments. ``enable`` writes such
a module into the site-packages of the running Python. Only RL Zoo imports it, and if this package has been uninstalled, RL Zoo
ignores the ImportError.
"""

import subprocess
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

HOOK = "custom_envs"
MARK = '"""Written by `sb3-trpo-plus enable`, removed by `sb3-trpo-plus disable`: RL Zoo imports this module."""'
CONTENT = f"""{MARK}

import sb3_trpo_plus.zoo  # noqa: F401
"""
# Imports RL Zoo as its rl_zoo3 script does, so without the current folder, which `python -c` puts first on sys.path.
WHOSE_TRPO = """
import sys
sys.path.pop(0)
import rl_zoo3.cli
from rl_zoo3 import ALGOS
print("whose:", ALGOS["trpo"].__module__)
"""


class ActivationError(RuntimeError):
    """The opt-in can't be changed here; the message says what to do."""


def hook_file() -> Path:
    """Where ``enable`` puts the module: site-packages of the running Python."""
    return Path(sysconfig.get_paths()["purelib"]) / f"{HOOK}.py"


def is_enabled() -> bool:
    """Whether the module that ``enable`` writes exists; for whether it takes effect, see :func:`status`."""
    return hook_file().is_file() and hook_file().read_text().startswith(MARK)


def enable() -> str:
    """
    Write the ``custom_envs`` module.

    :return: what was done, in words
    :raises ActivationError: the environment has a ``custom_envs`` of its own, or can't be written to
    """
    if is_enabled():
        return f"Already enabled in {sys.prefix}"
    other = _other_hook()
    if other is not None:
        raise ActivationError(
            f"RL Zoo already imports a {HOOK} module of yours, {other}: add the line `import sb3_trpo_plus.zoo` to it instead"
        )
    try:
        hook_file().write_text(CONTENT)
    except OSError as error:
        raise ActivationError(f"{hook_file()} can't be written ({error.strerror}): use a virtual environment") from error
    return f"Enabled: `rl_zoo3 ... --algo trpo` in {sys.prefix} now runs sb3_trpo_plus (wrote {hook_file()})"


def disable() -> str:
    """
    Remove the ``custom_envs`` module that :func:`enable` wrote.

    :return: what was done, in words
    :raises ActivationError: the module can't be removed
    """
    if not is_enabled():
        return f"Not enabled in {sys.prefix}, nothing to do"
    try:
        hook_file().unlink()
    except OSError as error:
        raise ActivationError(f"{hook_file()} can't be removed ({error.strerror})") from error
    return f"Disabled: `rl_zoo3 ... --algo trpo` in {sys.prefix} runs sb3_contrib again (removed {hook_file()})"


def status() -> str:
    """
    Whose TRPO the ``rl_zoo3`` command runs in this Python environment, determined by importing RL Zoo in a new process.

    :return: one sentence
    """
    outcome = subprocess.run([sys.executable, "-c", WHOSE_TRPO], capture_output=True, text=True)
    found = [line.removeprefix("whose: ") for line in outcome.stdout.splitlines() if line.startswith("whose: ")]
    if not found:
        reason = ["it prints nothing", *outcome.stderr.strip().splitlines()][-1]
        return f"Unknown: RL Zoo does not start in {sys.prefix}: {reason}"
    module = found[0]
    ours = module.startswith("sb3_trpo_plus")
    if ours and not is_enabled():
        return f"Enabled by your own {HOOK} module, {_other_hook()}: `rl_zoo3 ... --algo trpo` runs {module}"
    if ours:
        return f"Enabled: `rl_zoo3 ... --algo trpo` in {sys.prefix} runs {module}"
    if is_enabled():
        return (
            f"Enabled without effect: {hook_file()} is in place, but `rl_zoo3 ... --algo trpo` runs {module}; "
            f"`{Path(sys.executable).name} -c 'import {HOOK}'` shows why"
        )
    return f"Not enabled: `rl_zoo3 ... --algo trpo` in {sys.prefix} runs {module}; `sb3-trpo-plus enable` changes that"


def _other_hook() -> str | None:
    """Path of a ``custom_envs`` module that ``enable`` did not write, on the path of the ``rl_zoo3`` script; None if none."""
    spec = PathFinder.find_spec(HOOK, sys.path)
    if spec is None or is_enabled():
        return None
    return spec.origin or str(list(spec.submodule_search_locations or []))
