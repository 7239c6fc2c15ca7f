"""RL Zoo's ``push_to_hub`` and ``load_from_hub`` for every algorithm, with a stand-in for the Hub on this machine."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from imageio.v3 import imread

import tests.command_line.lamp as lamp
from sb3_trpo_plus import zoo
from tests.command_line.commands import OURSELVES, run
from tests.command_line.stand_in_hub import stand_in_hub, variables

CARTPOLE = ["--env", "CartPole-v1"]
NORMALISED = ("npg", "trpo_vine")
WITH_VIDEO = "trpo"
# Several commands in one process, which also shows that none leaves RL Zoo changed for the next one.
SEVERAL = """
import json, sys
sys.modules["custom_envs"] = None
from sb3_trpo_plus.command_line.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["sb3-trpo-plus", *arguments]
    print("\\n$", *arguments)
    try:
        main()
    except SystemExit as stop:
        print("exit:", stop.code)
"""
SEVERAL_BLOCKS = """
import json, sys
for block in json.loads(sys.argv[1]):
    exec(block, {})
"""


def several(commands: list[list[str]], cwd: Path) -> list[str]:
    """What each of the commands printed to its standard output."""
    printed = run(sys.executable, "-c", SEVERAL, json.dumps(commands), cwd=cwd)
    return re.split(r"^\$ .*$", printed, flags=re.MULTILINE)[1:]


def push(algo: str, *arguments: str) -> list[str]:
    return ["push_to_hub", "--algo", algo, *CARTPOLE, "-orga", "me", *arguments]


def load(algo: str, *arguments: str) -> list[str]:
    return ["load_from_hub", "--algo", algo, *CARTPOLE, "-orga", "me", *arguments]


class Pushed(NamedTuple):
    """The folder of the training, the environment variables of the stand-in, and its repositories."""

    folder: Path
    variables: dict[str, str]
    repositories: Path

    def file(self, algo: str, name: str = "README.md") -> Path:
        return self.repositories / "me" / f"{algo}-CartPole-v1" / name

    def page(self, algo: str) -> tuple[dict[str, Any], str]:
        _, header, text = self.file(algo).read_text().split("---\n", 2)
        return yaml.safe_load(header), text

    def block(self, algo: str, language: str) -> str:
        found = re.search(rf"```{language}\n(.*?)\n```", self.page(algo)[1], re.DOTALL)
        assert found
        return found[1]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("pushed")
    commands = []
    for algo in (*zoo.ALGORITHMS, "ppo"):
        settings = [f"normalize:{algo in NORMALISED}", *(["n_steps:64"] if algo == "ppo" else [])]
        amount = ["-n", "1024", "--eval-freq", "512", "--seed", "3", "--device", "cpu"]
        commands.append(["train", "--algo", algo, *CARTPOLE, "-f", "logs", *amount, "-params", *settings])
        trust = [] if algo in zoo.ALGORITHMS else ["--trust"]
        commands.append(push(algo, *trust, *(["-n", "20"] if algo == WITH_VIDEO else ["--no-render"])))
    with stand_in_hub(folder) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        several(commands, folder)
        yield Pushed(folder, environment, folder / "repositories")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Set the environment variables of the commands, with the Hub's code trusted."""

    def set_all(names: dict[str, str]) -> None:
        for name, value in {"TRUST_REMOTE_CODE": "True", **names}.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize("algo", zoo.ALGORITHMS)
def test_page_describes_the_agent(pushed: Pushed, algo: str) -> None:
    header, text = pushed.page(algo)
    results = json.loads(pushed.file(algo, "results.json").read_text())
    wanted = {"sb3-trpo-plus", "stable-baselines3", "reinforcement-learning", "deep-reinforcement-learning", "CartPole-v1"}
    assert set(header["tags"]) == wanted
    assert header["library_name"] == "stable-baselines3"
    (entry,) = header["model-index"]
    assert entry["name"].lower() == algo
    figures = f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
    assert entry["results"][0]["metrics"][0]["value"] == figures

    agent = zoo.ALGORITHMS[algo].load(pushed.folder / f"logs/{algo}/CartPole-v1_1/CartPole-v1.zip")
    assert text.startswith(f"# {zoo.ALGORITHMS[algo].__name__} on CartPole-v1")
    assert f"| {figures.replace('+/-', '±')} (standard deviation" in text
    for row in (
        "10 episodes, deterministic actions, seed 0",
        f"| {agent.num_timesteps:,} steps",
        "| Seed of the training | 3 |",
    ):
        assert row in text
    logged = yaml.unsafe_load((pushed.folder / f"logs/{algo}/CartPole-v1_1/CartPole-v1/config.yml").read_text())
    assert yaml.safe_load(pushed.block(algo, "yaml")) == dict(logged)
    assert ("load_vec_normalize" in text) == (algo in NORMALISED)
    assert "rl_zoo3." not in text


def test_page_of_an_algorithm_that_is_not_ours_is_rl_zoos(pushed: Pushed) -> None:
    header, text = pushed.page("ppo")
    assert header["model-index"][0]["name"] == "PPO"
    assert "python -m rl_zoo3.load_from_hub --algo ppo" in text
    assert "sb3-trpo-plus" not in pushed.file("ppo").read_text()


def test_video_plays(pushed: Pushed) -> None:
    frames = imread(pushed.file(WITH_VIDEO, "replay.mp4"), plugin="FFMPEG")
    assert frames.shape == (21, 400, 600, 3)
    assert frames.std(axis=0).max() > 10, "something moves"
    assert not pushed.file("npg", "replay.mp4").exists()


def test_shell_lines_of_the_page_bring_the_same_agent_back(pushed: Pushed, tmp_path: Path, use: Any) -> None:
    use(pushed.variables)
    loads, enjoys = [], []
    for algo in zoo.ALGORITHMS:
        lines = [shlex.split(line) for line in pushed.block(algo, "bash").splitlines()]
        assert lines[1] == ["export", "TRUST_REMOTE_CODE=True"]
        assert [line[:2] for line in lines[2:]] == [["sb3-trpo-plus", "load_from_hub"], ["sb3-trpo-plus", "enjoy"]]
        loads.append(lines[2][1:])
        enjoys.append([*lines[3][1:], "--no-render", "-n", "5000"])
    back = several([*loads, *enjoys], tmp_path)[len(loads) :]
    before = several(enjoys, pushed.folder)
    for algo, here, there in zip(zoo.ALGORITHMS, before, back, strict=True):
        returns = re.findall(r"Episode Reward: (.*)", here)
        assert returns == re.findall(r"Episode Reward: (.*)", there)
        pushed_mean = json.loads(pushed.file(algo, "results.json").read_text())["mean_reward"]
        assert sum(map(float, returns[:10])) / 10 == pytest.approx(pushed_mean)
        assert ("Loading running average" in there) == (algo in NORMALISED)


def test_python_lines_of_the_page_give_the_pages_figure(pushed: Pushed, tmp_path: Path, use: Any) -> None:
    use({**pushed.variables, "TRUST_REMOTE_CODE": ""})
    blocks = [pushed.block(algo, "python") for algo in zoo.ALGORITHMS]
    printed = run(sys.executable, "-c", SEVERAL_BLOCKS, json.dumps(blocks), cwd=tmp_path)
    found = [float(mean) for mean in re.findall(r"^\((?:np\.float64\()?([\d.]+)", printed, re.MULTILINE)]
    results = [json.loads(pushed.file(algo, "results.json").read_text())["mean_reward"] for algo in zoo.ALGORITHMS]
    assert found == pytest.approx(results)


def test_page_of_an_environment_with_wrappers_and_arguments(pushed: Pushed, use: Any) -> None:
    use(pushed.variables)
    shutil.copy(lamp.__file__, pushed.folder)
    environment = ["--algo", "npg", "--env", "Lamp-v0", "--gym-packages", "lamp"]
    settings = ["env_wrapper:'rl_zoo3.wrappers.TimeFeatureWrapper'", "frame_stack:2", "env_kwargs:{'size':32}", "n_envs:2"]
    train = ["train", *environment, "-n", "512", "--eval-freq", "-1", "-params", "normalize:True", *settings]
    several(
        [train, ["push_to_hub", *environment, "-orga", "me", "-name", "lamp", "--no-render", "--seed", "7"]], pushed.folder
    )
    folder = pushed.repositories / "me/lamp"
    text = (folder / "README.md").read_text()
    assert "-orga me -name lamp -f logs\nsb3-trpo-plus enjoy --algo npg --env Lamp-v0 -f logs --gym-packages lamp\n" in text
    assert "## Arguments of the environment\n\n```yaml\nsize: 32\n```" in text
    block = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert block
    printed = run(
        sys.executable, "-c", SEVERAL_BLOCKS, json.dumps([block[1] + "\nprint(env.get_attr('size'))"]), cwd=pushed.folder
    )
    results = json.loads((folder / "results.json").read_text())
    assert [float(figure) for figure in re.findall(r"\d+\.\d+", printed)][:2] == pytest.approx(
        [results["mean_reward"], results["std_reward"]]
    )
    assert "[32]" in printed


def test_what_the_hub_refuses_is_said_in_a_line(pushed: Pushed, use: Any) -> None:
    nothing = load("npg", "-name", "nothing", "-f", "back")
    use(pushed.variables)
    no_repository, other_algorithm = several([nothing, load("npg", "-name", "trpo-CartPole-v1", "-f", "back")], pushed.folder)
    assert re.search(r"exit: There is no me/nothing on http://\S+, or it is closed to you$", no_repository, re.MULTILINE)
    assert "exit: me/trpo-CartPole-v1 has no npg-CartPole-v1.zip" in other_algorithm
    use({"HF_TOKEN": ""})
    not_allowed, unknown = several([push("npg", "--no-render"), nothing], pushed.folder)
    login = "; no token is set: `hf auth login`, or HF_TOKEN, sets one"
    assert re.search(rf"exit: http://\S+ refuses me/npg-CartPole-v1{login}", not_allowed)
    assert re.search(rf"exit: There is no me/nothing on http://\S+, or it is closed to you{login}", unknown)
    assert not (pushed.folder / "back").exists()


def test_without_a_network(pushed: Pushed, tmp_path: Path, use: Any) -> None:
    use(variables(tmp_path, "http://127.0.0.1:9", "hf_token"))
    for printed in several([push("npg", "--no-render"), load("npg", "-f", "back")], pushed.folder):
        assert "exit: http://127.0.0.1:9 fails for me/npg-CartPole-v1: ConnectError" in printed


def test_code_that_is_not_trusted_is_not_loaded(pushed: Pushed, tmp_path: Path, use: Any) -> None:
    use({**pushed.variables, "TRUST_REMOTE_CODE": "False"})
    printed = run(*OURSELVES, *load("npg", "-f", "back"), cwd=tmp_path, fails=True)
    assert "set the environment variable `TRUST_REMOTE_CODE` to `True`" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "back").exists()
