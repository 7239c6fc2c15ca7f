"""What the commands open is read as data, from the first file to the last."""

import pickle
import shutil
from pathlib import Path

import pytest

from sb3_trpo_plus.files.rebuild import rebuilt
from tests.command_line.commands import OURSELVES, run

AGENT = "MountainCarContinuous-v0"
RUN = Path("logs/trpo") / f"{AGENT}_1"


class Touches:
    """Its pickle makes a file."""

    def __reduce__(self) -> object:
        return Path.touch, (Path("trace"),)


HOSTILE = {
    "the YAML makes objects": (
        f"{AGENT}/config.yml",
        b"!!python/object/apply:os.system [touch trace]",
    ),
    "normalize is evaluated": (
        f"{AGENT}/config.yml",
        b"!!python/object/apply:collections.OrderedDict\n- - - normalize\n    - \"open('trace', 'w')\"\n",
    ),
    "a wrapper is imported": (
        f"{AGENT}/config.yml",
        b"!!python/object/apply:collections.OrderedDict\n- - - env_wrapper\n    - trace_maker.Wrapper\n",
    ),
    "the arguments make objects": (f"{AGENT}/args.yml", b"env_kwargs: !!python/object/apply:os.system [touch trace]"),
    "the statistics are a program": (f"{AGENT}/vecnormalize.pkl", pickle.dumps(Touches())),
    "the model is a program": (f"{AGENT}.zip", b""),
}


@pytest.fixture
def folder(trained: tuple[Path, str], tmp_path: Path) -> Path:
    """A run whose files a test may change, in a folder with a module that leaves a trace when it is imported."""
    shutil.copytree(trained[0] / "logs", tmp_path / "logs")
    (tmp_path / "trace_maker.py").write_text("open('trace', 'w')\nfrom gymnasium import Wrapper\n")
    return tmp_path


def with_program(model: Path) -> bytes:
    from tests.files.hostile import call, members_of, pickled, with_data

    return with_data(members_of(model.read_bytes()), policy_kwargs=pickled(call("os:system", "touch trace")))


@pytest.mark.parametrize(
    "command", [["enjoy", "--no-render", "-n", "5"], ["report", "-n", "1"]], ids=lambda command: command[0]
)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_strangers_run_runs_nothing(kind: str, command: list[str], folder: Path) -> None:
    name, content = HOSTILE[kind]
    path = folder / RUN / name
    assert path.is_file()
    path.write_bytes(content or with_program(path))
    printed = run(*OURSELVES, *command, "--env", AGENT, "--gym-packages", "json", cwd=folder, fails=True)
    assert not (folder / "trace").exists()
    assert "refused" in printed or "can't be read" in printed
    assert "Traceback" not in printed


def test_training_opens_the_agent_and_the_settings_as_data(folder: Path) -> None:
    model = folder / RUN / f"{AGENT}.zip"
    for_training = ["--env", AGENT, "-n", "64", "--eval-freq", "-1", "-f", "new"]
    (folder / "settings.py").write_text("open('trace', 'w')\nhyperparams = {}")
    (folder / "settings.yml").write_text(
        f"{AGENT}:\n  n_timesteps: 64\n  policy: MlpPolicy\n  policy_kwargs: \"dict(a=open('trace', 'w'))\"\n"
    )
    (folder / "wrapped.yml").write_text(
        f"{AGENT}:\n  n_timesteps: 64\n  policy: MlpPolicy\n  env_wrapper: trace_maker.Wrapper\n"
    )
    for settings in ("settings.py", "settings.yml", "wrapped.yml"):
        printed = run(*OURSELVES, "train", *for_training, "--conf-file", settings, cwd=folder, fails=True)
        assert "is refused" in printed
        assert "--trust" in printed
    model.write_bytes(with_program(model))
    printed = run(*OURSELVES, "train", *for_training, "-i", str(model), cwd=folder, fails=True)
    assert "is refused: its policy_kwargs" in printed
    assert not (folder / "trace").exists()


def test_trust_lets_a_file_run_what_it_asks_for(folder: Path) -> None:
    """The user's own wrapper, which RL Zoo imports; and with --gym-packages, without --trust."""
    config = folder / RUN / AGENT / "config.yml"
    config.write_text(config.read_text() + "  - - env_wrapper\n    - trace_maker.Wrapper\n")
    command = ["report", "--env", AGENT, "-n", "1"]
    run(*OURSELVES, *command, cwd=folder, fails=True)
    assert not (folder / "trace").exists()
    assert "over 1 episodes" in run(*OURSELVES, *command, "--gym-packages", "trace_maker", cwd=folder)
    (folder / "trace").unlink()


def test_results_of_plots_are_data(trained: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "results.pkl").write_bytes(pickle.dumps(Touches()))
    printed = run(*OURSELVES, "plot_from_file", "-i", "results.pkl", cwd=tmp_path, fails=True)
    assert "'results.pkl' is refused: it has a call of pathlib" in printed
    assert not (tmp_path / "trace").exists()
    shutil.copytree(trained[0] / "logs", tmp_path / "logs")
    run(*OURSELVES, "all_plots", "-a", "trpo", "-e", AGENT, "-f", "logs", "-o", "results", "--no-display", cwd=tmp_path)
    pickled = (tmp_path / "results.pkl").read_bytes()
    assert repr(rebuilt(pickled)) == repr(pickle.loads(pickled))
    assert AGENT in repr(rebuilt(pickled))


def test_inspect_tells_what_a_file_holds_and_runs_nothing(folder: Path) -> None:
    model = folder / RUN / f"{AGENT}.zip"
    printed = run(*OURSELVES, "inspect", model, cwd=folder)
    assert "Algorithm:          TRPO" in printed
    assert "action_net.weight" in printed
    assert "Box(-1.0, 1.0, (1,), float32)" in printed
    assert "Verdict: opens as data, and runs nothing" in printed
    assert "Verdict: opens as data" in run(*OURSELVES, "inspect", folder / RUN / AGENT / "vecnormalize.pkl", cwd=folder)
    model.write_bytes(with_program(model))
    printed = run(*OURSELVES, "inspect", model, cwd=folder, fails=True)
    assert "policy_kwargs                os.system" in printed
    assert "is refused: its policy_kwargs needs a call of os.system" in printed
    assert "no saved model at" in run(*OURSELVES, "inspect", "nothing.zip", cwd=folder, fails=True)
    assert not (folder / "trace").exists()
