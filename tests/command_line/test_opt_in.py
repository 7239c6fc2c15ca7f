"""The opt-in of the plain ``rl_zoo3`` command, in virtual environments of its own, from a wheel and from a checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import rl_zoo3

from sb3_trpo_plus.command_line import opt_in

ROOT = Path(__file__).parents[2]
TRAIN = ["train", "--algo", "trpo", "--env", "CartPole-v1", "-n", "256", "--eval-freq", "-1", "-f", "logs"]


class Environment:
    """A virtual environment that borrows this one's packages, all but sb3-trpo-plus, which it gets itself."""

    def __init__(self, folder: Path, editable: bool) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False)
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
            if not entry.name.lstrip("_").startswith(("custom_envs", "sb3_trpo_plus")):
                (borrowed / entry.name).symlink_to(entry)
        self.site_packages = next((folder / "lib").glob("python*")) / "site-packages"
        (self.site_packages / "borrowed.pth").write_text(f"{borrowed}\n")
        install = ["install", "--no-deps", "-q", *(["-e"] if editable else []), ROOT]
        self.python("-m", "pip", *map(str, install), "--ignore-installed")
        # The same script that pip makes of RL Zoo's entry point.
        (folder / "bin" / "rl_zoo3").write_text(
            f"#!{folder / 'bin' / 'python'}\nimport sys\nfrom rl_zoo3.cli import main\nsys.exit(main())\n"
        )
        (folder / "bin" / "rl_zoo3").chmod(0o755)

    def run(self, *command: str, fails: bool = False) -> str:
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        outcome = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=self.folder,
            env={**environment, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert (outcome.returncode != 0) == fails, outcome.stdout + outcome.stderr
        return outcome.stdout + outcome.stderr

    def python(self, *arguments: str) -> str:
        return self.run("python", *arguments)

    def files(self) -> set[Path]:
        """Everything in it but caches and RL Zoo's logs."""
        found = {Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names}
        return {file for file in found if not {"__pycache__", "logs"} & set(file.parts)}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("wheel") / "venv", editable=False)


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_plain_rl_zoo_runs_ours_between_enable_and_disable(editable: bool, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv", editable)
    installed = environment.python("-c", "import sb3_trpo_plus; print(sb3_trpo_plus.__file__)")
    assert str(ROOT if editable else environment.folder) in installed
    outside = set(Path(rl_zoo3.__file__).parent.rglob("*.py"))

    assert "Not enabled" in environment.run("sb3-trpo-plus", "status")

    before = environment.files()
    assert "Enabled" in environment.run("sb3-trpo-plus", "enable")
    assert environment.files() - before == {environment.site_packages / "custom_envs.py"}
    assert "Already enabled" in environment.run("sb3-trpo-plus", "enable")
    status = environment.run("sb3-trpo-plus", "status")
    assert status.startswith("Enabled: ")
    assert "sb3_trpo_plus.algorithms.trpo" in status
    printed = environment.run("rl_zoo3", *TRAIN)
    assert printed.count("TRPO of sb3_trpo_plus") == 1
    started = environment.python("-c", "import sys; print(sorted(sys.modules))")
    assert "custom_envs" not in started, "Python itself starts as before"
    assert "sb3_trpo_plus" not in started.replace("__editable__", "")

    assert "Disabled" in environment.run("sb3-trpo-plus", "disable")
    assert "nothing to do" in environment.run("sb3-trpo-plus", "disable")
    assert environment.files() == before
    assert "sb3_trpo_plus" not in environment.run("rl_zoo3", *TRAIN)
    assert set(Path(rl_zoo3.__file__).parent.rglob("*.py")) == outside


def test_users_own_custom_envs_is_not_touched(environment: Environment) -> None:
    own = environment.site_packages / "custom_envs.py"
    own.write_text("OWN = True\n")
    try:
        assert "add the line `import sb3_trpo_plus.zoo`" in environment.run("sb3-trpo-plus", "enable", fails=True)
        assert "nothing to do" in environment.run("sb3-trpo-plus", "disable")
        assert own.read_text() == "OWN = True\n"
        own.write_text("import sb3_trpo_plus.zoo\n")
        assert "Enabled by your own custom_envs module" in environment.run("sb3-trpo-plus", "status")
    finally:
        own.unlink()


def test_status_tells_when_the_opt_in_has_no_effect(environment: Environment) -> None:
    environment.run("sb3-trpo-plus", "enable")
    shadow = environment.folder / "bin" / "custom_envs.py"
    broken = environment.site_packages / "optuna.py"
    broken.write_text("raise ImportError('no optuna today')\n")
    try:
        assert environment.run("sb3-trpo-plus", "status").startswith("Unknown: RL Zoo does not start")
        broken.unlink()
        (environment.site_packages / "aaa.pth").write_text(f"import sys; sys.path.insert(0, {str(shadow.parent)!r})\n")
        shadow.write_text("")
        assert environment.run("sb3-trpo-plus", "status").startswith("Enabled without effect")
    finally:
        for file in (shadow, broken, environment.site_packages / "aaa.pth"):
            file.unlink(missing_ok=True)
        environment.run("sb3-trpo-plus", "disable")


def test_package_that_is_gone_leaves_rl_zoo_working(environment: Environment) -> None:
    (environment.site_packages / "custom_envs.py").write_text(
        opt_in.CONTENT.replace("import sb3_trpo_plus", "import sb3_trpo_gone")
    )
    try:
        assert "Saving to logs" in environment.run("rl_zoo3", *TRAIN)
    finally:
        (environment.site_packages / "custom_envs.py").unlink()


def test_environment_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(opt_in, "hook_file", lambda: tmp_path / "nowhere" / "custom_envs.py")
    monkeypatch.setattr(opt_in, "_other_hook", lambda: None)
    with pytest.raises(opt_in.ActivationError, match=r"custom_envs\.py can't be written .*use a virtual environment"):
        opt_in.enable()
    assert not list(tmp_path.iterdir())
    assert sys.prefix in opt_in.disable()
