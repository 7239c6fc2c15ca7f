"""
Do the GAIL, AIRL and preference comparisons of `imitation` run with this library's algorithms as the generator?

And how soon does GAIL learn, beside the same program with sb3-contrib's TRPO and with SB3's PPO? GAIL and AIRL imitate 60
episodes of an expert on CartPole-v1; preference comparisons learn the reward of Pendulum-v1, as that of CartPole is always 1.
Returns are the environment's own, over 20 deterministic episodes. One CSV row a run goes to benchmarks/results/imitation.csv;
runs that have a row are skipped, so it can be stopped and started again.

Episodes of CartPole-v1 end with the fall, so that any positive reward teaches a generator to balance, be it the reward of a
discriminator which was never trained. Here the generator's episodes last 500 steps whatever happens, and the rows "GAIL,
untrained" say what is learnt without a discriminator.

`imitation` asks for releases of Gymnasium and SB3 from before ours, so it is installed without what it asks for, into an
environment of its own that has the packages of this one; the script then runs itself there.

    python benchmarks/imitation_learning.py            # run what is missing, print the table, draw the curves
    python benchmarks/imitation_learning.py --table    # only print the table of what is there
    python benchmarks/imitation_learning.py --draw     # only draw the curves of what is there
"""

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, SupportsFloat

import colours
import gymnasium as gym
import numpy as np
import results_file
import torch as th
from matplotlib.figure import Figure
from own_environment import python_with
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import set_random_seed

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "imitation.csv"
PICTURE = ROOT.parent / "docs" / "images" / "imitation.png"
PACKAGES = ("imitation==1.0.1",)
SOLVED = {"CartPole-v1": 475.0, "Pendulum-v1": -250.0}
HORIZON = 500
DEMONSTRATIONS = 60
EXPERT_SEED = 99
N_ENVS = 8
ROUND = {"n_steps": 128, "batch_size": 128, "learning_rate": 1e-3}
STEP = {"cg_damping": 0.01}
GENERATORS: dict[str, dict[str, Any]] = {
    "sb3_trpo_plus.TRPO": STEP,
    "sb3_contrib.TRPO": STEP,
    "stable_baselines3.PPO": {},
    "sb3_trpo_plus.NPG": STEP,
    "sb3_trpo_plus.PPOPenalty": {},
}
GAMMAS = {"CartPole-v1": 0.95, "Pendulum-v1": 0.9}
COMPARED = tuple(GENERATORS)[:3]
OF_EACH_CLASS = tuple(name for name in GENERATORS if name != "stable_baselines3.PPO")
# Environment, generators, number of seeds and steps.
EXPERIMENTS: dict[str, tuple[str, tuple[str, ...], int, int]] = {
    "GAIL": ("CartPole-v1", COMPARED, 10, 151_552),
    "GAIL, untrained": ("CartPole-v1", COMPARED, 1, 49_152),
    "AIRL": ("CartPole-v1", OF_EACH_CLASS, 1, 102_400),
    "preferences": ("Pendulum-v1", OF_EACH_CLASS, 1, 102_400),
}
ROUNDS_A_POINT = 4
ITERATIONS = 25
COMPARISONS = 1_000
Run = tuple[str, str, int]


class SetUpAgain(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole-v1 in episodes of 500 steps: where the pole falls, it is set up again within the episode."""

    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1").unwrapped)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation, reward, has_fallen, _, info = self.env.step(action)
        if has_fallen:
            observation, _ = self.env.reset()
        return observation, reward, False, self.steps == HORIZON, info


class Curve:
    """Evaluates a generator at the end of every so many rounds."""

    def __init__(self, model: Any, env_id: str, seed: int, rounds: int) -> None:
        self.model, self.rounds = model, rounds
        self.env = make_vec_env(env_id, 20, seed=first_seed(seed) + 500)
        self.points: list[tuple[int, float]] = []

    def __call__(self, index: int) -> None:
        if (index + 1) % self.rounds == 0:
            self.points.append((self.model.num_timesteps, evaluate(self.model, self.env)))


def first_seed(seed: int) -> int:
    """A VecEnv seeds its environments one apart, so runs must be further apart than that to see other episodes."""
    return 1_000 * seed


def evaluate(model: Any, env: Any) -> float:
    """Mean return of 20 deterministic episodes."""
    mean, _ = evaluate_policy(model, env, 20)
    assert isinstance(mean, float)
    return round(mean, 1)


def make_generator(name: str, env: Any, gamma: float, seed: int) -> Any:
    library, algorithm = name.split(".")
    make = getattr(import_module(library), algorithm)
    return make("MlpPolicy", env, gamma=gamma, seed=first_seed(seed), device="cpu", **ROUND, **GENERATORS[name])


def reward_net(kind: str, env: Any) -> Any:
    nets = import_module("imitation.rewards.reward_nets")
    networks = import_module("imitation.util.networks")
    return getattr(nets, kind)(env.observation_space, env.action_space, normalize_input_layer=networks.RunningNorm)


def adversarial(run: Run, demonstrations: list[Any], logger: Any) -> Curve:
    """GAIL or AIRL."""
    experiment, name, seed = run
    env_id, _, _, steps = EXPERIMENTS[experiment]
    env = make_vec_env(SetUpAgain, N_ENVS)
    generator = make_generator(name, env, GAMMAS[env_id], seed)
    curve = Curve(generator, env_id, seed, ROUNDS_A_POINT)
    if experiment == "AIRL":
        trainer, net = import_module("imitation.algorithms.adversarial.airl").AIRL, "BasicShapedRewardNet"
    else:
        trainer, net = import_module("imitation.algorithms.adversarial.gail").GAIL, "BasicRewardNet"
    trainer(
        demonstrations=demonstrations,
        demo_batch_size=1024,
        venv=env,
        gen_algo=generator,
        reward_net=reward_net(net, env),
        n_disc_updates_per_round=0 if experiment == "GAIL, untrained" else 4,
        custom_logger=logger,
    ).train(steps, curve)
    return curve


def preferences(run: Run, logger: Any) -> Curve:
    """Comparisons of fragments of episodes, by their true returns."""
    experiment, name, seed = run
    env_id, _, _, steps = EXPERIMENTS[experiment]
    algorithms = import_module("imitation.algorithms.preference_comparisons")
    env = make_vec_env(env_id, N_ENVS)
    generator = make_generator(name, env, GAMMAS[env_id], seed)
    curve = Curve(generator, env_id, seed, 1)
    net = reward_net("BasicRewardNet", env)
    rng = np.random.default_rng(seed)
    algorithms.PreferenceComparisons(
        algorithms.AgentTrainer(generator, net, env, rng, exploration_frac=0.05),
        net,
        num_iterations=ITERATIONS,
        fragment_length=25,
        initial_epoch_multiplier=4,
        custom_logger=logger,
        rng=rng,
    ).train(steps, COMPARISONS, curve)
    return curve


def train(demonstrations: list[Any], run: Run) -> dict[str, Any]:
    """Train and evaluate one generator, on one thread."""
    experiment, name, seed = run
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    # The reward net and the order of the demonstrations are drawn from the global generators.
    set_random_seed(first_seed(seed))
    start = time.perf_counter()
    # What is logged passes through the formats that imitation has by default, though nobody sees it.
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        logger = import_module("imitation.util.logger").configure(folder)
        curve = preferences(run, logger) if experiment == "preferences" else adversarial(run, demonstrations, logger)
    return as_row(experiment, name, seed, curve, time.perf_counter() - start)


def as_row(experiment: str, name: str, seed: int, curve: Curve, seconds: float) -> dict[str, Any]:
    steps, last = curve.points[-1]
    return {
        "experiment": experiment,
        "generator": name,
        "version": metadata.version(name.split(".")[0]),
        "seed": seed,
        "steps": steps,
        "return": last,
        "seconds": round(seconds, 1),
        "imitation": metadata.version("imitation"),
        "stable_baselines3": metadata.version("stable_baselines3"),
        "machine": results_file.described()["machine"],
        "curve": " ".join(f"{at}:{mean}" for at, mean in curve.points),
    }


def expert() -> tuple[list[Any], dict[str, Any]]:
    """Episodes of SB3's PPO with RL Zoo's settings, and its row."""
    rollout = import_module("imitation.data.rollout")
    th.set_num_threads(1)
    start = time.perf_counter()
    model = PPO(
        "MlpPolicy", make_vec_env("CartPole-v1", N_ENVS), n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20,
        learning_rate=lambda progress: 1e-3 * progress, clip_range=lambda progress: 0.2 * progress, device="cpu",
        seed=first_seed(EXPERT_SEED),
    )  # fmt: skip
    model.learn(100_000)
    curve = Curve(model, "CartPole-v1", EXPERT_SEED, 1)
    curve(0)
    seconds = time.perf_counter() - start
    env = make_vec_env("CartPole-v1", N_ENVS, seed=first_seed(EXPERT_SEED) + 100)
    until = rollout.make_sample_until(min_episodes=DEMONSTRATIONS)
    rng = np.random.default_rng(EXPERT_SEED)
    episodes = rollout.rollout(model, env, until, rng, unwrap=False, deterministic_policy=True)
    return episodes[:DEMONSTRATIONS], as_row("expert", "stable_baselines3.PPO", EXPERT_SEED, curve, seconds)


def run_missing(jobs: int) -> None:
    """Train what has no row yet; the generators alternate, so that all meet the same noise of the machine."""
    done = {(row["experiment"], row["generator"], int(row["seed"])) for row in results_file.read(RESULTS)}
    runs = [
        (experiment, name, seed)
        for experiment, (_, names, seeds, _) in EXPERIMENTS.items()
        for seed in range(seeds)
        for name in names
    ]
    missing = [run for run in runs if run not in done]
    if not missing:
        return
    demonstrations, of_expert = expert()
    if (of_expert["experiment"], of_expert["generator"], of_expert["seed"]) not in done:
        results_file.add(RESULTS, of_expert)
    results_file.run_all(RESULTS, partial(train, demonstrations), missing, jobs)


def rows_of(experiment: str, name: str) -> list[dict[str, str]]:
    """By seed."""
    found = [row for row in results_file.read(RESULTS) if (row["experiment"], row["generator"]) == (experiment, name)]
    return sorted(found, key=lambda row: int(row["seed"]))


def points(row: dict[str, str]) -> list[tuple[int, float]]:
    """Steps and return of each evaluation."""
    pairs = [point.split(":") for point in row["curve"].split()]
    return [(int(steps), float(mean)) for steps, mean in pairs]


def print_table() -> None:
    """One Markdown row an experiment and generator."""
    print(
        "| experiment | environment | generator | steps | solved after (median) | return by seed | mean of the run | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for experiment, (env_id, names, _, _) in EXPERIMENTS.items():
        for name in names:
            rows = rows_of(experiment, name)
            if not rows:
                continue
            curves = [points(row) for row in rows]
            first = statistics.median(
                next((at for at, mean in curve if mean >= SOLVED[env_id]), float("inf")) for curve in curves
            )
            after = f"{first:,.0f}" if first < float("inf") else "never"
            returns = ", ".join(f"{float(row['return']):.0f}" for row in rows)
            over_run = statistics.mean(mean for curve in curves for _, mean in curve)
            seconds = statistics.median(float(row["seconds"]) for row in rows)
            generator, steps = f"{name} {rows[0]['version']}", f"{int(rows[0]['steps']):,}"
            print(
                f"| {experiment} | {env_id} | {generator} | {steps} | {after} | {returns} | {over_run:.0f} | {seconds:.0f} |"
            )


DRAWN = {
    "sb3_trpo_plus.TRPO": ("ours", colours.OURS),
    "sb3_contrib.TRPO": ("sb3-contrib's TRPO", colours.SB3_CONTRIB),
    "stable_baselines3.PPO": ("SB3's PPO", colours.PPO),
}


def draw() -> None:
    """GAIL's mean over the seeds and each of them, by steps of the generator, a panel for each generator."""
    figure = Figure(figsize=(colours.WIDTH, 3.9), layout="constrained")
    all_axes = figure.subplots(1, len(COMPARED), sharey=True)
    for axes, name in zip(all_axes, COMPARED, strict=True):
        title, colour = DRAWN[name]
        curves = [points(row) for row in rows_of("GAIL", name)]
        for curve in curves:
            axes.plot(*np.transpose(curve), color=colour, linewidth=0.8, alpha=0.45)
        if curves:
            axes.plot(*np.mean(curves, axis=0).T, color=colour, linewidth=2.8)
        axes.axhline(HORIZON, color="black", linewidth=1, linestyle=":")
        axes.set_title(title, color=colour)
        axes.set(ylim=(0, 1.04 * HORIZON), xlim=(0, EXPERIMENTS["GAIL"][3]))
        axes.set_xticks([0, 50_000, 100_000], ["0", "50,000", "100,000"])
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("true return of an episode\n(dotted: the expert's)")
    n_seeds = EXPERIMENTS["GAIL"][2]
    all_axes[1].set_xlabel(f"environment steps of the generator; thick, the mean of {n_seeds} seeds; thin, each seed")
    figure.suptitle(f"GAIL on CartPole-v1, {DEMONSTRATIONS} demonstrations", fontsize="large")
    figure.savefig(PICTURE, dpi=colours.DPI)


def main() -> None:
    parser = results_file.parser(__doc__)
    parser.add_argument(
        "--environment",
        type=Path,
        default=ROOT.parent / ".venv" / "imitation",
        metavar="FOLDER",
        help="where imitation is installed",
    )
    parser.add_argument("--draw", action="store_true", help="only draw what is there")
    args = parser.parse_args()
    if not (args.table or args.draw) and importlib.util.find_spec("imitation") is None:
        sys.exit(subprocess.run([str(python_with(PACKAGES, args.environment)), *sys.argv]).returncode)
    results_file.carry_out(args, lambda: run_missing(args.jobs), draw, print_table)


if __name__ == "__main__":
    main()
