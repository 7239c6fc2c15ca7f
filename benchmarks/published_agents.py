"""
Evaluate the TRPO agents that RL Zoo published in 2021, in the nearest environment that still exists.

    python benchmarks/published_agents.py FOLDER     # with FOLDER/CartPole-v1/CartPole-v1.zip and so on
    python benchmarks/published_agents.py --table    # only print what was measured
"""

import argparse
import csv
import warnings
from pathlib import Path

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trpo_plus import TRPO, __version__, load_vec_normalize

RESULTS = Path(__file__).parent / "results" / "published_agents.csv"
EPISODES = 20
# Name, published return (evaluations.npz of the same run, 20 episodes), present environment.
AGENTS = [
    ("CartPole-v1", 500.0, "CartPole-v1"),
    ("Acrobot-v1", -82.4, "Acrobot-v1"),
    ("MountainCarContinuous-v0", 92.6, "MountainCarContinuous-v0"),
    ("Pendulum-v1", -250.6, "Pendulum-v1"),
    ("LunarLander-v2", 147.7, "LunarLander-v3"),
    ("HalfCheetah-v3", 1783.4, "HalfCheetah-v4"),
    ("Hopper-v3", 3561.6, "Hopper-v4"),
    ("HopperBulletEnv-v0", 2546.8, "HopperBulletEnv-v0"),
    ("ReacherBulletEnv-v0", 12.7, "ReacherBulletEnv-v0"),
]


def evaluate(folder: Path, env_id: str) -> tuple[float, float]:
    """Mean and standard deviation of the deterministic return of the agent in a folder."""
    env = make_vec_env(env_id, 1, seed=0)
    if (folder / "vecnormalize.pkl").is_file():
        env = load_vec_normalize(folder / "vecnormalize.pkl", env)
        env.training = env.norm_reward = False
    mean, std = evaluate_policy(TRPO.load(folder / f"{folder.name}.zip", device="cpu"), env, EPISODES)
    return float(mean), float(std)  # type: ignore[arg-type]


def measure(folder: Path) -> None:
    """Write a row for each agent of a folder."""
    warnings.simplefilter("ignore")
    try:
        import pybullet_envs_gymnasium  # noqa: F401
    except ImportError:
        print("The PyBullet agents are left out: install pybullet_envs_gymnasium")
    rows = []
    for name, published, env_id in AGENTS:
        if env_id in gym.registry:
            mean, std = evaluate(folder / name, env_id)
            rows.append([name, env_id, published, round(mean, 1), round(std, 1), EPISODES, __version__])
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["agent", "env", "published", "mean_return", "std_return", "episodes", "version"])
        writer.writerows(rows)


def print_table() -> None:
    """One Markdown row an agent."""
    print("| published agent | environment now | published | here |\n|---|---|---|---|")
    with RESULTS.open() as file:
        for row in csv.DictReader(file):
            print("| {agent} | {env} | {published} | {mean_return} ± {std_return} |".format_map(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("folder", type=Path, nargs="?", help="that has a folder of each agent")
    source.add_argument("--table", action="store_true", help="only print what was measured")
    args = parser.parse_args()
    if not args.table:
        measure(args.folder)
    print_table()


if __name__ == "__main__":
    main()
