"""Evaluate an agent that RL Zoo trained, and draw its learning curve."""

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import yaml
from huggingface_sb3 import EnvironmentName
from matplotlib import pyplot as plt
from rl_zoo3 import ALGOS, create_test_env, utils
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results
from stable_baselines3.common.results_plotter import X_TIMESTEPS, ts2xy, window_func

import sb3_trpo_plus.zoo  # noqa: F401  (registers)
from sb3_trpo_plus.command_line.runs import LOGS, import_modules, newest_run

WINDOW = 20


def learning_curve(log_path: Path, title: str, picture: Path) -> bool:
    """
    Draw the returns of training episodes, their moving average, and the evaluations during training, over environment steps.

    :param log_path: folder of one RL Zoo run
    :param title: of the picture
    :param picture: PNG file to write
    :return: whether there was something to draw, and the picture was written
    """
    try:
        steps, returns = ts2xy(load_results(str(log_path)), X_TIMESTEPS)
    except LoadMonitorResultsError:
        steps, returns = np.array([]), np.array([])
    evaluations = log_path / "evaluations.npz"
    if not len(returns) and not evaluations.is_file():
        return False
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    if len(returns):
        axes.plot(steps, returns, ".", markersize=3, color="tab:blue", alpha=0.25, label="training episode")
    if len(returns) > WINDOW:
        averaged_steps, averaged = window_func(steps, returns, WINDOW, np.mean)
        axes.plot(averaged_steps, averaged, color="tab:blue", label=f"mean of {WINDOW} training episodes")
    if evaluations.is_file():
        with np.load(evaluations) as saved:
            axes.plot(saved["timesteps"], saved["results"].mean(axis=1), "o-", color="black", label="evaluation")
    axes.set(xlabel="environment steps", ylabel="return of an episode", title=title, xlim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    return True


def report(arguments: list[str]) -> None:
    """
    The ``report`` command.

    :param arguments: of the command line
    """
    parser = argparse.ArgumentParser("sb3-trpo-plus report", description=__doc__)
    parser.add_argument("--algo", default="trpo", choices=list(ALGOS), help="RL Zoo's name of the algorithm")
    parser.add_argument("--env", default="CartPole-v1", type=EnvironmentName, help="environment id")
    parser.add_argument("-f", "--folder", default=LOGS, help="RL Zoo's log folder")
    parser.add_argument("--exp-id", default=0, type=int, help="number of the run (0: the newest that has a model)")
    parser.add_argument("-n", "--n-episodes", default=20, type=int, help="episodes of the evaluation")
    parser.add_argument("--seed", default=0, type=int, help="of the evaluation")
    parser.add_argument("--gym-packages", default=[], nargs="+", help="modules to import that register environments")
    args = parser.parse_args(arguments)
    import_modules(args.gym_packages)

    exp_id = args.exp_id or newest_run(args.folder, args.algo, args.env, f"{args.env}.zip")
    log_path = Path(args.folder) / args.algo / (f"{args.env}_{exp_id}" if exp_id > 0 else "")
    model_path = log_path / f"{args.env}.zip"
    if not model_path.is_file():
        sys.exit(f"There is no {model_path}: leave out --exp-id to take the newest run that has a model")
    print(f"Model:          {model_path}")
    print(f"Logs:           {log_path}")
    returns = _evaluate(args, log_path, model_path)
    print(f"Mean return:    {np.mean(returns):.2f} +/- {np.std(returns):.2f} over {args.n_episodes} episodes")
    print(f"Learning curve: {_draw(log_path, f'{args.algo.upper()} on {args.env.gym_id}')}")


def _evaluate(args: argparse.Namespace, log_path: Path, model_path: Path) -> list[float]:
    """Returns of the episodes, in the environment of the training, as RL Zoo's ``enjoy`` makes it."""
    saved = log_path / args.env
    hyperparams, stats_path = utils.get_saved_hyperparams(str(saved), test_mode=True)
    env = create_test_env(
        args.env.gym_id,
        stats_path=stats_path,
        seed=args.seed,
        should_render=False,
        env_kwargs={**hyperparams.pop("env_kwargs", {}), **_env_kwargs_of_training(saved)},
        hyperparams=hyperparams,
    )
    model = ALGOS[args.algo].load(str(model_path), device="cpu")
    deterministic = not (ExperimentManager.is_atari(args.env.gym_id) or ExperimentManager.is_minigrid(args.env.gym_id))
    returns, _ = evaluate_policy(model, env, args.n_episodes, deterministic, return_episode_rewards=True)
    env.close()
    assert isinstance(returns, list)
    return returns


def _env_kwargs_of_training(saved: Path) -> dict[str, Any]:
    """Those of its command line; none where an agent comes without that file."""
    if not (saved / "args.yml").is_file():
        return {}
    # As RL Zoo itself reads it, which the command may have been told to read as data.
    with (saved / "args.yml").open() as file:
        trained_with = yaml.load(file, Loader=yaml.UnsafeLoader)
    return trained_with["env_kwargs"] or {}


def _draw(log_path: Path, title: str) -> str:
    """The picture's file, or why there is none."""
    picture = log_path / "learning_curve.png"
    try:
        drawn = learning_curve(log_path, title, picture)
    except Exception as error:  # a folder that can't be written, logs cut off by a kill: the return matters more
        return f"none ({type(error).__name__}: {error})"
    return str(picture) if drawn else "none (no episodes and no evaluations were logged)"
