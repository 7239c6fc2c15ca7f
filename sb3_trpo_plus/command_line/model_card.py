"""The page that describes an agent of ours on the Hugging Face Hub."""

import inspect
import json
import platform
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_sb3 import EnvironmentName, ModelName

from sb3_trpo_plus.zoo import ALGORITHMS

PACKAGES = ("sb3-trpo-plus", "stable-baselines3", "rl-zoo3", "gymnasium", "torch", "numpy")


def card_metadata(algo: str, theirs: dict[str, Any]) -> dict[str, Any]:
    """
    The YAML header of the page.

    :param algo: RL Zoo's name of the algorithm
    :param theirs: RL Zoo's header
    :return: with a tag of ours, and the algorithm's name as RL Zoo looks for it when it lists an organisation's agents
    """
    index = [{**entry, "name": algo.upper()} for entry in theirs["model-index"]]
    return {**theirs, "tags": ["sb3-trpo-plus", *theirs["tags"]], "model-index": index}


def card_text(folder: Path, algo: str, env_name: EnvironmentName, repo_id: str, seed: int) -> str:
    """
    The text of the page.

    :param folder: what RL Zoo is about to upload
    :param algo: RL Zoo's name of the algorithm
    :param env_name: of the environment
    :param repo_id: organisation/name of the repository
    :param seed: of the evaluation
    :return: Markdown
    """
    algorithm, env_id = ALGORITHMS[algo].__name__, env_name.gym_id
    model_file = ModelName(algo, env_name).filename
    results = json.loads((folder / "results.json").read_text())
    config, trained = _settings(folder / "config.yml"), _settings(folder / "args.yml")
    env_kwargs = {**config.get("env_kwargs", {}), **(trained["env_kwargs"] or {})}
    with zipfile.ZipFile(folder / model_file) as saved:
        steps = json.loads(saved.read("data"))["num_timesteps"]
    sentence = " ".join((inspect.getdoc(ALGORITHMS[algo]) or "").split("\n\n")[0].split())
    actions = "deterministic" if results["is_deterministic"] else "sampled"
    organisation, repo_name = repo_id.split("/")
    which = f"--algo {algo} --env {env_id}"
    name = "" if repo_name == ModelName(algo, env_name) else f" -name {repo_name}"
    packages = " ".join(["", "--gym-packages", *trained["gym_packages"]]) if trained["gym_packages"] else ""
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{package} {version(package)}" for package in PACKAGES)])
    text = f"""# {algorithm} on {env_id}

{sentence} `{algorithm}` is an algorithm of the package sb3-trpo-plus, for
[Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3) and its
[RL Zoo](https://github.com/DLR-RM/rl-baselines3-zoo), which trained this agent.

| | |
|---|---|
| Environment | `{env_id}` |
| Mean return | {results["mean_reward"]:.2f} ± {results["std_reward"]:.2f} (standard deviation of the episodes) |
| Evaluation | {results["n_eval_episodes"]} episodes, {actions} actions, seed {seed} |
| Trained for | {steps:,} steps of the environment |
| Seed of the training | {trained["seed"]} |
| Versions at the evaluation | {versions} |

## On the command line

`sb3-trpo-plus` reads these files as data, and runs nothing that they ask for. The download is by a package that asks for
`TRUST_REMOTE_CODE`, since Stable-Baselines3 would unpickle them, which can run code: open them there only if you trust
{organisation}.

```bash
pip install 'sb3-trpo-plus[zoo]'
export TRUST_REMOTE_CODE=True
sb3-trpo-plus load_from_hub {which} -orga {organisation}{name} -f logs
sb3-trpo-plus enjoy {which} -f logs{packages}
```

## In Python

```python
{_python(folder, algo, env_id, repo_id, model_file, config, env_kwargs, trained["gym_packages"], seed)}
```

## Settings

```yaml
{yaml.safe_dump(_plain(config), sort_keys=True).strip()}
```
"""
    if env_kwargs:
        text += f"\n## Arguments of the environment\n\n```yaml\n{yaml.safe_dump(_plain(env_kwargs)).strip()}\n```\n"
    return text


def _settings(path: Path) -> Any:
    """From an open file, as RL Zoo reads it: while a command runs, this is data unless there was ``--trust``."""
    with open(path) as file:
        return yaml.load(file, Loader=yaml.UnsafeLoader)


def _python(
    folder: Path,
    algo: str,
    env_id: str,
    repo_id: str,
    model_file: str,
    config: dict[str, Any],
    env_kwargs: dict[str, Any],
    gym_packages: list[str],
    seed: int,
) -> str:
    """Lines that load the agent with what it needs, and evaluate it."""
    algorithm = ALGORITHMS[algo].__name__
    normalised = bool(config.get("normalize")) and (folder / "vec_normalize.pkl").is_file()
    wrappers = {key: config[key] for key in ("env_wrapper", "vec_env_wrapper") if config.get(key)}
    stacked = config.get("frame_stack", 0)
    arguments = [repr(env_id), f"seed={seed}"]
    if env_kwargs:
        arguments.append(f"env_kwargs={_plain(env_kwargs)!r}")
    if "env_wrapper" in wrappers:
        arguments.append(f'wrapper_class=get_wrapper_class({{"env_wrapper": {wrappers["env_wrapper"]!r}}})')
    lines = [
        "from huggingface_hub import hf_hub_download",
        *(["from rl_zoo3.utils import get_wrapper_class"] if wrappers else []),
        "from stable_baselines3.common.env_util import make_vec_env",
        "from stable_baselines3.common.evaluation import evaluate_policy",
        *(["from stable_baselines3.common.vec_env import VecFrameStack"] if stacked else []),
        "",
        *(f"import {name}" for name in gym_packages),
        f"from sb3_trpo_plus import {algorithm}{', load_vec_normalize' if normalised else ''}",
        "",
        f"env = make_vec_env({', '.join(arguments)})",
    ]
    if "vec_env_wrapper" in wrappers:
        wrapper = wrappers["vec_env_wrapper"]
        lines.append(f'env = get_wrapper_class({{"vec_env_wrapper": {wrapper!r}}}, "vec_env_wrapper")(env)')
    if normalised:
        lines += [
            f'env = load_vec_normalize(hf_hub_download("{repo_id}", "vec_normalize.pkl"), env)',
            "env.training = env.norm_reward = False",
        ]
    if stacked:
        lines.append(f"env = VecFrameStack(env, {stacked})")
    lines += [
        f'model = {algorithm}.load(hf_hub_download("{repo_id}", "{model_file}"))',
        "print(evaluate_policy(model, env, n_eval_episodes=10))",
    ]
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """With everything that YAML has no notation for as text."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
