"""A Python environment of its own for a benchmark whose packages ask for other releases than this library does."""

import os
import subprocess
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path


def python_with(packages: Sequence[str], folder: Path, with_dependencies: bool = False) -> Path:
    """
    The Python of an environment that has the packages of this one, and some more, which come before this one's.

    :param packages: with their versions
    :param folder: of that environment, which is made if it is not there
    :param with_dependencies: whether what they ask for is installed too, where this environment has no release that will do
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.is_file():
        venv.create(folder, with_pip=True)
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    theirs = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    # A folder that is only on the path has its own .pth files ignored, by which an editable install is found.
    ours = sysconfig.get_path("purelib")
    (Path(theirs) / "this_one.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *packages, *([] if with_dependencies else ["--no-deps"])], check=True)
    return python
