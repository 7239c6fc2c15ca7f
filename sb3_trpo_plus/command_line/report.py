"""Evaluate an agent that RL Zoo trained, and draw its learning curve."""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import yaml
from huggingface_sb3 import EnvironmentName
from matplotlib import pyplot as plt
from rl_zoo3 import ALGOS, create_test_env, get_saved_hyperparams
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import get_model_path
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.results_plotter import X_TIMESTEPS, ts2xy, window_func

import sb3_trpo_plus.zoo  # noqa: F401  (registers)

WINDOW = 20


def learning_curve(log_path: Path, title: str, picture: Path) -> None:
    """
    Draw the returns of training episodes, their moving average, and the evaluations during training, over environment steps.

    :param log_path: folder of one RL Zoo run, with its monitor files
    :param title: of the picture
    :param picture: PNG file to write
    :raises LoadMonitorResultsError: the folder has no monitor files
    """
    steps, returns = ts2xy(load_results(str(log_path)), X_TIMESTEPS)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, returns, ".", markersize=3, color="tab:blue", alpha=0.25, label="training episode")
    if len(returns) > WINDOW:
        averaged_steps, averaged = window_func(steps, returns, WINDOW, np.mean)
        axes.plot(averaged_steps, averaged, color="tab:blue", label=f"mean of {WINDOW} training episodes")
    evaluations = log_path / "evaluations.npz"
    if evaluations.is_file():
        with np.load(evaluations) as saved:
            axes.plot(saved["timesteps"], saved["results"].mean(axis=1), "o-", color="tab:orange", label="evaluation")
    axes.set(xlabel="environment steps", ylabel="return of an episode", title=title, xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """
    The ``report`` command.

    :param arguments: command-line arguments; ``None``: ``sys.argv[1:]``
    """
    parser = argparse.ArgumentParser("sb3-trpo-plus report", description=__doc__)
    parser.add_argument("--algo", default="trpo", choices=list(ALGOS), help="RL Zoo's name of the algorithm")
    parser.add_argument("--env", default="CartPole-v1", type=EnvironmentName, help="environment id")
    parser.add_argument("-f", "--folder", default="logs", help="RL Zoo's log folder")
    parser.add_argument("--exp-id", default=0, type=int, help="number of the run (0: the latest)")
    parser.add_argument("-n", "--n-episodes", default=20, type=int, help="episodes of the evaluation")
    parser.add_argument("--seed", default=0, type=int, help="of the evaluation")
    parser.add_argument("--gym-packages", default=[], nargs="+", help="modules to import that register environments")
    args = parser.parse_args(arguments)
    for module in args.gym_packages:
        __import__(module)

    try:
        _, model_path, log_path = get_model_path(args.exp_id, args.folder, args.algo, args.env)
    except (AssertionError, ValueError) as error:
        sys.exit(f"{error}: train first, with `sb3-trpo-plus train --algo {args.algo} --env {args.env} -f {args.folder}`")
    saved = Path(log_path) / args.env
    hyperparams, stats_path = get_saved_hyperparams(str(saved), test_mode=True)
    trained_with = yaml.load((saved / "args.yml").read_text(), yaml.UnsafeLoader)  # as RL Zoo itself reads it
    env = create_test_env(
        args.env.gym_id,
        stats_path=stats_path,
        seed=args.seed,
        should_render=False,
        env_kwargs={**hyperparams.pop("env_kwargs", {}), **(trained_with["env_kwargs"] or {})},
        hyperparams=hyperparams,
    )
    model = ALGOS[args.algo].load(model_path, device="cpu")
    deterministic = not (ExperimentManager.is_atari(args.env.gym_id) or ExperimentManager.is_minigrid(args.env.gym_id))
    returns, _ = evaluate_policy(model, env, args.n_episodes, deterministic, return_episode_rewards=True)
    picture = Path(log_path) / "learning_curve.png"
    learning_curve(Path(log_path), f"{args.algo.upper()} on {args.env.gym_id}", picture)

    print(f"Mean return:    {np.mean(returns):.2f} +/- {np.std(returns):.2f} over {args.n_episodes} episodes")
    print(f"Model:          {model_path}")
    print(f"Logs:           {log_path}")
    print(f"Learning curve: {picture}")
