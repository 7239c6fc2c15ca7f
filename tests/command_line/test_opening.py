"""What the commands open is read as data, from the first file to the last."""

import io
import pickle
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import huggingface_sb3
import numpy as np
import pytest
import rl_zoo3.load_from_hub
import torch as th
import yaml
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.command_line.inspect import inspect
from sb3_trpo_plus.command_line.opening import opened_as_data
from sb3_trpo_plus.files.errors import UnsafeFileError
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
    "the arguments name a file": (f"{AGENT}/args.yml", b"env_kwargs: {xml_file: /etc/hostname}"),
    "the settings name a file": (
        f"{AGENT}/config.yml",
        b"!!python/object/apply:collections.OrderedDict\n- - - env_kwargs\n    - xml_file: /etc/hostname\n",
    ),
    "the settings stack too many frames": (
        f"{AGENT}/config.yml",
        b"!!python/object/apply:collections.OrderedDict\n- - - frame_stack\n    - 300000000\n",
    ),
    "the statistics are a program": (f"{AGENT}/vecnormalize.pkl", pickle.dumps(Touches())),
    "the model is a program": (f"{AGENT}.zip", b""),
}


@pytest.fixture
def folder(trained: tuple[Path, str], tmp_path: Path) -> Path:
    """A run whose files a test may change, in a folder with a module that leaves a trace when it is imported."""
    shutil.copytree(trained[0] / "logs", tmp_path / "logs")
    (tmp_path / "trace_maker.py").write_text("open('trace', 'w')\nfrom gymnasium import Wrapper\n")
    return tmp_path


def with_program(model: Path, attribute: str = "policy_kwargs") -> bytes:
    from tests.files.hostile import call, members_of, pickled, with_data

    return with_data(members_of(model.read_bytes()), **{attribute: pickled(call("os:system", "touch trace"))})


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
    (folder / "many.yml").write_text(f"{AGENT}:\n  n_timesteps: 64\n  policy: MlpPolicy\n  n_envs: 100000\n")
    for settings in ("settings.py", "settings.yml", "wrapped.yml", "many.yml"):
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


def test_model_with_a_class_of_the_users_opens_where_a_flag_names_its_module(folder: Path) -> None:
    """The refusal says so, and nothing that is for Python. The file says ``__main__``: it was saved by a script."""
    model = folder / RUN / f"{AGENT}.zip"
    (folder / "mine.py").write_text(
        "from stable_baselines3.common.torch_layers import FlattenExtractor\n\n\nclass Mine(FlattenExtractor):\n    pass\n"
    )
    script = (
        "import sys; from sb3_trpo_plus import TRPO; exec(open('mine.py').read())\n"
        "kwargs = {'features_extractor_class': Mine}\n"
        "TRPO('MlpPolicy', sys.argv[1], use_sde=True, policy_kwargs=kwargs).save(sys.argv[2])"
    )
    run(sys.executable, "-c", script, AGENT, model, cwd=folder)
    for command in (["report", "--env", AGENT, "-n", "1"], ["enjoy", "--env", AGENT, "--no-render", "-n", "5"]):
        printed = run(*OURSELVES, *command, cwd=folder, fails=True)
        assert "is refused: its policy_kwargs needs __main__.Mine, a class that the file brings its own code for" in printed
        assert "--gym-packages MODULE; or --trust" in printed
        assert not any(words in printed for words in ("custom_objects", "safe_globals", "trust=True", "Traceback"))
        run(*OURSELVES, *command, "--gym-packages", "mine", cwd=folder)
        run(*OURSELVES, *command, "--trust", cwd=folder)
    train = ["train", "--env", AGENT, "-n", "64", "--eval-freq", "-1", "-f", "new", "-i", str(model)]
    assert "--gym-packages MODULE; or --trust" in run(*OURSELVES, *train, cwd=folder, fails=True)
    run(*OURSELVES, *train, "--gym-packages", "mine", cwd=folder)


def hostile(saved: Path, name: str) -> Path:
    """A model that SB3 saved, with a program in an attribute."""
    from tests.files.hostile import call, members_of, pickled, with_data

    path = saved.parent / name
    path.write_bytes(with_data(members_of(saved.read_bytes()), note=pickled(call("os:system", "touch trace"))))
    return path


@pytest.fixture(scope="module")
def of_others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of PPO, and one of SAC with a replay buffer, all of them programs."""
    logs = tmp_path_factory.mktemp("others") / "logs"
    home = logs / "ppo/CartPole-v1_1"
    (home / "CartPole-v1").mkdir(parents=True)
    PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, device="cpu").save(home / "saved.zip")
    hostile(home / "saved.zip", "CartPole-v1.zip")
    (home / "CartPole-v1/config.yml").write_text("!!python/object/apply:collections.OrderedDict [[[policy, MlpPolicy]]]")
    (home / "CartPole-v1/args.yml").write_text("env_kwargs: null")
    home = logs / "sac/Pendulum-v1_1"
    home.mkdir(parents=True)
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu").save(home / "saved.zip")
    hostile(home / "saved.zip", "Pendulum-v1.zip")
    (home / "replay_buffer.pkl").write_bytes(pickle.dumps(Touches()))
    return logs.parent


@pytest.mark.parametrize(
    "command",
    [
        "enjoy --algo ppo --env CartPole-v1 -n 5 --no-render",
        "report --algo ppo --env CartPole-v1 -n 1",
        "train --algo ppo --env CartPole-v1 -n 16 -i logs/ppo/CartPole-v1_1/CartPole-v1.zip -f l",
        "train --algo sac --env Pendulum-v1 -n 1 -i logs/sac/Pendulum-v1_1/Pendulum-v1.zip -f l",
    ],
    ids=["enjoy ppo", "report ppo", "train ppo", "train sac"],
)
def test_models_that_sb3_would_unpickle_are_refused(command: str, of_others: Path) -> None:
    printed = run(*OURSELVES, *command.split(), cwd=of_others, fails=True)
    assert "v1.zip' is refused: it is a model of" in printed
    assert "--trust" in printed
    assert "Traceback" not in printed
    assert not (of_others / "trace").exists()


def test_trust_opens_the_models_of_others(of_others: Path, tmp_path: Path) -> None:
    shutil.copytree(of_others / "logs", tmp_path / "logs")
    command = ["report", "--algo", "ppo", "--env", "CartPole-v1", "-n", "1", "--trust"]
    assert "over 1 episodes" in run(*OURSELVES, *command, cwd=tmp_path)
    assert (tmp_path / "trace").exists()


def test_algorithms_of_others_train_afresh(tmp_path: Path) -> None:
    command = [
        "train",
        "--algo",
        "ppo",
        "--env",
        "CartPole-v1",
        "-n",
        "32",
        "-params",
        "n_steps:32",
        "batch_size:32",
        "n_envs:1",
    ]
    run(*OURSELVES, *command, "--eval-freq", "32", "--save-freq", "32", cwd=tmp_path)
    assert (tmp_path / "logs/ppo/CartPole-v1_1/CartPole-v1.zip").is_file()


def test_each_of_sb3s_ways_to_unpickle_is_closed(of_others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a caller gets around ``load``; ours still loads, from a path and from a stream."""
    monkeypatch.chdir(tmp_path)
    ours = TRPO("MlpPolicy", "CartPole-v1", device="cpu")
    ours.save("ours.zip")
    path, buffer = of_others / "logs/ppo/CartPole-v1_1/CartPole-v1.zip", of_others / "logs/sac/Pendulum-v1_1/replay_buffer.pkl"
    ppo, sac = PPO("MlpPolicy", "CartPole-v1", device="cpu"), SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu")
    before = BaseAlgorithm.load, np.load, yaml.load, huggingface_sb3.load_from_hub
    with opened_as_data("enjoy", []):
        unpickling: list[Any] = [
            lambda: PPO.load(path),
            lambda: PPO.load(io.BytesIO(path.read_bytes())),
            lambda: PPO.load(path=path),
            lambda: ppo.set_parameters(path),
            lambda: sac.load_replay_buffer(buffer),
        ]
        for unpickle in unpickling:
            with pytest.raises(UnsafeFileError, match=r"is refused: it is .*unpickle.*--trust"):
                unpickle()
        for source in ("ours.zip", io.BytesIO(Path("ours.zip").read_bytes())):
            loaded = TRPO.load(source, device="cpu")
            for one, other in zip(loaded.policy.parameters(), ours.policy.parameters(), strict=True):
                assert th.equal(one, other)
    assert before == (BaseAlgorithm.load, np.load, yaml.load, huggingface_sb3.load_from_hub)
    assert load_from_zip_file("ours.zip")[0] is not None
    assert not Path("trace").exists()


def test_no_module_of_the_current_folder_has_a_wrapper_of_former_years(folder: Path) -> None:
    for name in ("utils", "gym"):
        (folder / name / "wrappers").mkdir(parents=True)
        (folder / name / "__init__.py").write_text("__version__ = '0'\n")  # which SB3 looks up when it saves
        (folder / name / "wrappers/__init__.py").write_text("open('trace', 'w')\n")
    config = folder / RUN / AGENT / "config.yml"
    config.write_text(config.read_text() + "  - - env_wrapper\n    - utils.wrappers.ActionNoiseWrapper\n")
    (folder / "wrapped.yml").write_text(
        f"{AGENT}:\n  n_timesteps: 64\n  policy: MlpPolicy\n  env_wrapper: gym.wrappers.FlattenObservation\n"
    )
    package = ["--env", AGENT, "--gym-packages", "json"]
    assert "over 1 episodes" in run(*OURSELVES, "report", *package, "-n", "1", cwd=folder)
    train = ["train", *package, "-n", "64", "--eval-freq", "-1", "-f", "new", "--conf-file", "wrapped.yml"]
    run(*OURSELVES, *train, cwd=folder)
    saved = yaml.unsafe_load((folder / f"new/trpo/{AGENT}_1/{AGENT}/config.yml").read_text())
    assert saved["env_wrapper"] == "gymnasium.wrappers.FlattenObservation"
    assert not (folder / "trace").exists()


def test_the_users_own_arguments_of_an_environment_are_free(tmp_path: Path) -> None:
    (tmp_path / "named.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n\n\n"
        "class Named(CartPoleEnv):\n    def __init__(self, path, render_mode=None):\n"
        "        assert path == '/a/b'\n        super().__init__()\n\n\n"
        "gym.register('Named-v0', Named, max_episode_steps=9)\n"
    )
    (tmp_path / "c.yml").write_text(
        "Named-v0:\n  n_timesteps: 64\n  policy: MlpPolicy\n  n_steps: 64\n  batch_size: 64\n  env_kwargs: {path: /x}\n"
    )
    command = ["train", "--env", "Named-v0", "--gym-packages", "named", "--conf-file", "c.yml", "--eval-freq", "-1"]
    assert "its env_kwargs have '/x'" in run(*OURSELVES, *command, cwd=tmp_path, fails=True)
    run(*OURSELVES, *command, "--env-kwargs", "path:'/a/b'", cwd=tmp_path)


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("timesteps.npy", bytes(2**24))


def test_evaluations_that_grow_without_end_are_not_read(folder: Path) -> None:
    bomb(folder / RUN / "evaluations.npz")
    printed = run(*OURSELVES, "report", "--env", AGENT, "-n", "1", cwd=folder)
    assert "over 1 episodes" in printed
    assert "evaluations.npz' is refused: it grows from" in printed


@pytest.mark.parametrize("owner", [huggingface_sb3, rl_zoo3.load_from_hub], ids=["command", "enjoy"])
def test_metrics_of_the_hub_are_checked_before_they_are_extracted(
    owner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb(tmp_path / "train_eval_metrics.zip")
    monkeypatch.setattr(huggingface_sb3, "load_from_hub", lambda repo_id, filename: str(tmp_path / filename))
    with opened_as_data("load_from_hub", []):
        with pytest.raises(UnsafeFileError, match=r"train_eval_metrics\.zip' is refused: it grows from"):
            owner.load_from_hub("me/agent", "train_eval_metrics.zip")
        assert owner.load_from_hub("me/agent", "config.yml") == str(tmp_path / "config.yml")


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
    model.write_bytes(with_program(model, "lr_schedule"))
    printed = run(*OURSELVES, "inspect", model, cwd=folder)
    assert printed.endswith(
        "\nVerdict: opens as data here, and runs nothing. SB3 and others that unpickle it would import or run os.system\n"
    )
    model.write_bytes(with_program(model))
    printed = run(*OURSELVES, "inspect", model, cwd=folder, fails=True)
    assert "--trust" in printed
    assert "policy_kwargs                os.system" in printed
    assert "is refused: its policy_kwargs needs a call of os.system" in printed
    assert "no saved model at" in run(*OURSELVES, "inspect", "nothing.zip", cwd=folder, fails=True)
    assert not (folder / "trace").exists()


FORGED = "x\x1b[2J\n\nVerdict: opens as data, and runs nothing\n\x1b[8m"


def test_no_file_can_forge_its_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.files.hostile import members_of, pickled, text, with_data, zipped

    stream = io.BytesIO()
    TRPO("MlpPolicy", "CartPole-v1", device="cpu").save(stream)
    members = members_of(stream.getvalue())
    name = text("os") + text(FORGED) + b"\x93"
    contents = {
        "member.zip": zipped({**members, FORGED: b""}),
        "attribute.zip": with_data(members, **{FORGED: 1}),
        "name.zip": with_data(members, note=pickled(name)),
        "statistics.pkl": pickled(name),
        "long.zip": with_data(members, note=pickled(text("os") + text("x" * 600_000) + b"\x93")),
        "nothing.zip": b"",
        "nothing.pkl": b"",
    }
    for file, content in contents.items():
        (tmp_path / file).write_bytes(content)
        code: Any = 0
        try:
            inspect([str(tmp_path / file)])
        except SystemExit as stop:
            code = stop.code
        assert code in (0, 1), file
        lines = capsys.readouterr().out.split("\n")
        verdicts = [line for line in lines if line.startswith("Verdict:")]
        assert len(verdicts) == 1, file
        assert verdicts[0] == lines[-2]
        assert verdicts[0].startswith(("Verdict: opens as data, and runs", "Verdict: opens as data here")) == (code == 0)
        assert all(line.isprintable() and len(line) <= 500 for line in lines), file


def test_what_breaks_the_reader_is_said_to_be_unreadable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.pkl").mkdir()
    with pytest.raises(SystemExit) as stop:
        inspect([str(tmp_path / "folder.pkl")])
    assert stop.value.code == 1
    assert "\nVerdict: can't be read: IsADirectoryError: " in capsys.readouterr().out
