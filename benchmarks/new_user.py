"""
Does the command line work where nobody tuned anything? The first hour of a new user, in environments without an entry.

For each environment and each member of the family, in an empty folder and without a screen: train, report, enjoy, train on
from the saved agent, plot_train and all_plots, each as the help says it. A command is

- ok if it exits with 0, and for what draws: if it also wrote a picture whose path it printed;
- refused if its last line says why it can't: without a traceback, or one of the reasons that are expected here;
- failed otherwise.

4,096 steps teach little, so the returns only say that there was something to evaluate. One CSV row an environment and member
goes to benchmarks/results/new_user.csv; those that have a row are skipped, so it can be stopped and started again, and a row
that is removed is made again.

Some of the environments' packages ask for other releases than ours, so they are installed without what they ask for, into an
environment of its own that has the packages of this one; the script then runs itself there.

    python benchmarks/new_user.py            # run what is missing, then print the tables
    python benchmarks/new_user.py --table    # only print the tables of what is there
"""

import importlib.util
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import results_file
from own_environment import python_with

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "new_user.csv"
OURS = "new_user_envs"
PACKAGES = (
    "attrs==26.1.0", "dm-control==1.0.50", "dm-env==1.6", "dm-tree==0.1.10", "etils==1.15.0", "flappy-bird-gymnasium==0.4.0",
    "gymnasium-robotics==1.4.2", "labmaze==1.0.6", "lxml==6.1.3", "minatar==1.0.15", "minigrid==3.2.0", "mujoco==3.17.0",
    "pettingzoo==1.27.0", "shimmy==2.0.1",
)  # fmt: skip
# Id, module that registers it, and what is special about it.
ENVIRONMENTS = {
    "NewUser/Greenhouse-v0": (OURS, "Dict of a Discrete and two Boxes, one without bounds"),
    "NewUser/Rover-v0": (OURS, "Dict of an image and a Box without bounds; Box actions"),
    "NewUser/Camera-v0": (OURS, "image of 84 x 84 that is no Atari game"),
    "MinAtar/Breakout-v1": (OURS, "image of 10 x 10 with four channels of bool"),
    "MiniGrid-Empty-5x5-v0": ("minigrid", "Dict of a Discrete, an image of 7 x 7 and a text"),
    "NewUser/Valves-v0": (OURS, "MultiDiscrete actions"),
    "NewUser/Lights-v0": (OURS, "MultiBinary observations and actions"),
    "NewUser/Tank-v0": (OURS, "Box actions without bounds"),
    "NewUser/Stream-v0": (OURS, "can't be put back into a state, which the vine needs"),
    "FrozenLake-v1": ("", "Discrete observations"),
    "Blackjack-v1": ("", "Tuple of Discrete"),
    "dm_control/cartpole-swingup-v0": ("shimmy", "dm_control: Dict of float64, its own engine around MuJoCo"),
    "PointMaze_UMaze-v3": ("gymnasium_robotics", "Dict with a goal; MuJoCo"),
    "FlappyBird-v0": ("flappy_bird_gymnasium", "180 distances; pygame"),
    "ALE/Breakout-v5": ("", "Atari, of which no game has an entry"),
}
MEMBERS = ("trpo", "npg", "trpo_vine", "ppo_penalty")
STEPS = ("train", "report", "enjoy", "continue", "plot_train", "all_plots")
DRAW = ("report", "plot_train", "all_plots")
# Of the states that the vine needs, and of SB3, which wants bounds for actions.
REASONS = ("can't be saved", "must have a finite lower and upper bound")
# Too few episodes for a plot: said without a failure.
NOTHING = "nothing to draw"
SECONDS = 900
Run = tuple[str, str]


def arguments(step: str, env_id: str, algo: str) -> list[str]:
    """Of the command that a step is."""
    train = ["train", "--algo", algo, "--env", env_id, "-n", "4096", "--seed", "0", "-f", "logs"]
    agent = f"logs/{algo}/{folder_of(env_id)}_1/{folder_of(env_id)}.zip"
    commands = {
        "train": train,
        "report": ["report", "--algo", algo, "--env", env_id, "-n", "3", "-f", "logs"],
        "enjoy": ["enjoy", "--algo", algo, "--env", env_id, "--no-render", "-n", "300", "-f", "logs"],
        "continue": [*train, "-i", agent],
        "plot_train": ["plot_train", "-a", algo, "-e", env_id, "-f", "logs", "-w", "5"],
        "all_plots": ["all_plots", "-a", algo, "-e", env_id, "-f", "logs"],
    }
    module, _ = ENVIRONMENTS[env_id]
    registers = module and not step.endswith(("plot_train", "all_plots"))
    return [*commands[step], *(["--gym-packages", module] if registers else [])]


def folder_of(env_id: str) -> str:
    """RL Zoo's name of it in paths."""
    return env_id.replace("/", "-")


def carry_out(step: str, run: Run, folder: Path) -> tuple[dict[str, Any], str]:
    """
    Run the command of a step.

    :param folder: the user's
    :return: columns of the row, and what was printed
    """
    no_screen = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")}
    before = set(folder.rglob("*.png"))
    start = time.perf_counter()
    try:
        outcome = subprocess.run(
            [sys.executable, "-m", "sb3_trpo_plus", *arguments(step, *run)],
            cwd=folder,
            env={**no_screen, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        said = (outcome.stderr.strip().splitlines() or [""])[-1]
        explained = "Traceback" not in outcome.stderr or any(reason in said for reason in REASONS)
        status = "ok" if outcome.returncode == 0 else "refused" if explained else "failed"
        printed = outcome.stdout
        drawn = {str(file.relative_to(folder)) for file in set(folder.rglob("*.png")) - before}
        if status == "ok" and step in DRAW and not any(file in printed for file in drawn):
            reason = next((line for line in printed.splitlines() if NOTHING in line), "")
            status = "refused" if reason else "failed"
            said = reason or f"no picture, or none of which it says where: {sorted(drawn)}"
    except subprocess.TimeoutExpired:
        status, said, printed = "failed", f"not done after {SECONDS} seconds", ""
    seconds = round(time.perf_counter() - start, 1)
    columns = {step: status, f"{step}_seconds": seconds, f"{step}_said": "" if status == "ok" else said[:500]}
    return columns, printed


def saved_agent(env_id: str, algo: str, folder: Path) -> dict[str, str]:
    """What a training made of the environment: the policy, and what is normalised."""
    from sb3_trpo_plus.zoo import ALGORITHMS

    saved = folder / "logs" / algo / f"{folder_of(env_id)}_1"
    policy = ALGORITHMS[algo].load(saved / f"{folder_of(env_id)}.zip", device="cpu").policy
    statistics = saved / folder_of(env_id) / "vecnormalize.pkl"
    normalised = []
    if statistics.is_file():
        with statistics.open("rb") as file:
            normaliser = pickle.load(file)
        if normaliser.norm_obs:
            normalised.append(", ".join(normaliser.norm_obs_keys or ["observations"]))
        if normaliser.norm_reward:
            normalised.append("rewards")
    extractor = type(policy.features_extractor).__name__
    return {"policy": f"{type(policy).__name__}, {extractor}", "normalised": ", ".join(normalised) or "nothing"}


def new_user(run: Run) -> dict[str, Any]:
    """All steps, or the training alone if there is no agent to go on with."""
    env_id, algo = run
    steps: dict[str, Any] = {f"{step}{column}": "" for step in STEPS for column in ("", "_seconds", "_said")}
    agent, mean_return = {"policy": "", "normalised": ""}, ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(ROOT / f"{OURS}.py", folder)
        for step in STEPS:
            columns, printed = carry_out(step, run, folder)
            steps.update(columns)
            if step == "train":
                if columns[step] != "ok":
                    break
                agent = saved_agent(env_id, algo, folder)
            if step == "report":
                found = re.search(r"Mean return: +(\S+)", printed)
                mean_return = found[1] if found else ""
    of_environment = {"env": env_id, "algo": algo, **agent, "return": mean_return}
    return {**of_environment, **steps, **results_file.described()}


def run_missing(jobs: int) -> None:
    """Each member in all environments, one after the other."""
    done = {(row["env"], row["algo"]) for row in results_file.read(RESULTS)}
    runs = [(env_id, algo) for algo in MEMBERS for env_id in ENVIRONMENTS]
    results_file.run_all(RESULTS, new_user, [run for run in runs if run not in done], jobs)


def in_words(row: dict[str, str]) -> str:
    """A cell: ok with the return, or the steps that were not."""
    wrong = [f"{step} {row[step]}" for step in STEPS if row[step] not in ("ok", "")]
    return ", ".join(wrong) or f"ok ({float(row['return']):.1f})"


def print_tables() -> None:
    """One Markdown row an environment; and one for each command that was not ok."""
    rows = {(row["env"], row["algo"]): row for row in results_file.read(RESULTS)}
    print(f"| environment | what is special | policy | normalised | {' | '.join(MEMBERS)} |")
    print("|---|---|---|---|" + "---|" * len(MEMBERS))
    for env_id, (_, special) in ENVIRONMENTS.items():
        of_members = [rows.get((env_id, algo)) for algo in MEMBERS]
        made = {
            column: " or ".join(dict.fromkeys(row[column] for row in of_members if row and row[column]))
            for column in ("policy", "normalised")
        }
        cells = [in_words(row) if row else "" for row in of_members]
        print(f"| {env_id} | {special} | {made['policy']} | {made['normalised']} | {' | '.join(cells)} |")
    print("\n| environment | member | command | outcome | last line |\n|---|---|---|---|---|")
    for (env_id, algo), row in sorted(rows.items()):
        for step in STEPS:
            if row[step] not in ("ok", ""):
                print(f"| {env_id} | {algo} | {step} | {row[step]} | {row[f'{step}_said']} |")


def main() -> None:
    parser = results_file.parser(__doc__)
    parser.add_argument(
        "--environment",
        type=Path,
        default=ROOT.parent / ".venv" / "new_user",
        metavar="FOLDER",
        help="where the packages of the environments are installed",
    )
    args = parser.parse_args()
    if not args.table:
        if importlib.util.find_spec("minigrid") is None:
            sys.exit(subprocess.run([str(python_with(PACKAGES, args.environment)), *sys.argv]).returncode)
        run_missing(args.jobs)
    print_tables()


if __name__ == "__main__":
    main()
