"""
Is the cheaper step as good? Conjugate gradients stopped at a relative residual of 0.1, with the Fisher matrix on every fifth
sample, against the full solve: the surrogate's improvement by each from the same policy and rollout, and the returns that
training with each ends at.

One CSV row a run in benchmarks/results/cheaper_step.csv; runs that have a row are skipped, so it can be stopped and started
again.

    python benchmarks/cheaper_step.py            # run what is missing (hours), then print the tables
    python benchmarks/cheaper_step.py --table    # only print them
"""

import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import results_file
import torch as th
from gymnasium import spaces
from speed import CARTPOLE, CHEETAH, MUJOCO, WIDE, make_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.policies.distributions import action_distribution, kl_divergence

RESULTS = Path(__file__).parent / "results" / "cheaper_step.csv"
SETTINGS: dict[str, tuple[str, dict[str, Any], int]] = {
    "CartPole-v1": ("CartPole-v1", CARTPOLE, 100_000),
    "HalfCheetah-v4": ("HalfCheetah-v4", CHEETAH, 200_000),
    "Hopper-v4": ("Hopper-v4", MUJOCO, 200_000),
    "HalfCheetah-v4 256x256": ("HalfCheetah-v4", {**CHEETAH, "policy_kwargs": WIDE}, 0),
    "Humanoid-v4": ("Humanoid-v4", MUJOCO, 0),
}
SEEDS = range(10)
UPDATES = 100
CHEAPER_STEPS: dict[str, dict[str, Any]] = {
    "tolerance 0.02": {"cg_residual_tol": 0.02},
    "tolerance 0.1": {"cg_residual_tol": 0.1},
    "tolerance 0.1, every 5th sample": {"cg_residual_tol": 0.1, "fisher_sub_sampling_factor": 5},
}
COLUMNS = dict(zip(("tol_0.02", "tol_0.1", "tol_0.1_every_5th"), CHEAPER_STEPS, strict=True))
WHAT = ("full solve", "tolerance 0.02")
Run = tuple[str, str, int]


class Compared(TRPO):
    """Takes the full step, after trying the cheaper ones from the same policy on the same rollout."""

    options: ClassVar[dict[str, dict[str, Any]]] = CHEAPER_STEPS
    gains: list[dict[str, float]]

    def _improve_policy(self) -> list[th.nn.Parameter]:
        start = {name: value.clone() for name, value in self.policy.state_dict().items()}
        generator = np.random.get_state()  # noqa: NPY002
        full_options = {name: getattr(self, name) for options in self.options.values() for name in options}
        gains = {}
        for name, options in {**self.options, "full": {}}.items():
            vars(self).update({**full_options, **options})
            self.policy.load_state_dict(start)
            np.random.set_state(generator)  # noqa: NPY002
            parameters = super()._improve_policy()
            gains[name] = self.improvement_at_target_kl(start)
        self.gains.append(gains)
        return parameters

    @th.no_grad()
    def improvement_at_target_kl(self, start: dict[str, th.Tensor]) -> float:
        """The surrogate's, on the way from the start through the present parameters, where the mean KL is target_kl."""
        end = {name: value.clone() for name, value in self.policy.state_dict().items()}
        rollout = next(self.rollout_buffer.get())
        is_discrete = isinstance(self.action_space, spaces.Discrete)
        actions = rollout.actions.long().flatten() if is_discrete else rollout.actions
        advantages = (rollout.advantages - rollout.advantages.mean()) / (rollout.advantages.std() + 1e-8)

        def at(scale: float) -> Any:
            self.policy.load_state_dict({name: value + scale * (end[name] - value) for name, value in start.items()})
            return action_distribution(self.policy, rollout.observations)

        old = at(0.0)
        low, high = 0.0, 1.0
        while kl_divergence(old, at(high)).mean() < self.kl_limit and high < 16:
            high *= 2
        for _ in range(12):
            middle = (low + high) / 2
            if kl_divergence(old, at(middle)).mean() < self.kl_limit:
                low = middle
            else:
                high = middle
        ratio = th.exp(at(low).log_prob(actions) - rollout.old_log_prob)
        self.policy.load_state_dict(end)
        return float((ratio * advantages).mean() - advantages.mean())


def train(run: Run) -> dict[str, Any]:
    """One training, on one thread."""
    name, what, seed = run
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    env_id, settings, timesteps = SETTINGS[name]
    env = make_env(env_id, seed)
    row: dict[str, Any] = {"workload": name, "what": what, "seed": seed}
    start = time.perf_counter()
    if what == "compared":
        compared = Compared("MlpPolicy", env, seed=seed, device="cpu", **settings)
        compared.gains = []
        compared.learn(UPDATES * compared.n_steps * compared.n_envs)
        row["mean_return"] = ""
        for column, name in COLUMNS.items():
            of_means = sum(gains[name] for gains in compared.gains) / sum(gains["full"] for gains in compared.gains)
            median = statistics.median(gains[name] / gains["full"] for gains in compared.gains if gains["full"] > 0)
            row[column] = f"{of_means:.4f} {median:.4f}"
    else:
        options = CHEAPER_STEPS.get(what, {})
        model = TRPO("MlpPolicy", env, seed=seed, device="cpu", **{**settings, **options}).learn(timesteps)
        test_env = make_env(env_id, 10_000 + seed)
        if isinstance(test_env, VecNormalize):
            assert isinstance(env, VecNormalize)
            test_env.obs_rms, test_env.training, test_env.norm_reward = env.obs_rms, False, False
        returns, _ = evaluate_policy(model, test_env, 20)
        row |= {"mean_return": round(float(np.mean(returns)), 2), **dict.fromkeys(COLUMNS, "")}
    return row | {"seconds": round(time.perf_counter() - start, 1), **results_file.described()}


def all_runs() -> Iterator[Run]:
    """The comparisons first, then the returns, seed by seed."""
    yield from ((name, "compared", 0) for name in SETTINGS)
    for seed in SEEDS:
        for name in SETTINGS:
            if SETTINGS[name][2]:
                yield from ((name, what, seed) for what in WHAT)


def run_missing(jobs: int) -> None:
    """Train what has no row yet."""
    done = {(row["workload"], row["what"], int(row["seed"])) for row in results_file.read(RESULTS)}
    missing = [run for run in all_runs() if run not in done]
    results_file.run_all(RESULTS, train, missing, jobs)


def print_tables() -> None:
    """The comparison of steps, and the returns."""
    rows = results_file.read(RESULTS)
    print("Improvement over the full solve's at the same KL, in 100 updates: ratio of the means, median of the ratios\n")
    print(f"| workload | {' | '.join(CHEAPER_STEPS)} |\n|---|---|---|---|")
    for row in rows:
        if row["what"] == "compared":
            print(f"| {row['workload']} | {' | '.join(row[column].replace(' ', ', ') for column in COLUMNS)} |")
    print("\n| environment | steps | | mean return of each seed | mean | standard error |\n|---|---|---|---|---|---|")
    for name, (_, _, steps) in SETTINGS.items():
        for what in WHAT:
            found = [row for row in rows if (row["workload"], row["what"]) == (name, what)]
            if not steps or not found:
                continue
            returns = [float(row["mean_return"]) for row in sorted(found, key=lambda row: int(row["seed"]))]
            error = statistics.stdev(returns) / len(returns) ** 0.5 if len(returns) > 1 else float("nan")
            each = ", ".join(f"{value:.0f}" for value in returns)
            print(f"| {name} | {steps:,} | {what} | {each} | {statistics.mean(returns):.0f} | {error:.0f} |")


def main() -> None:
    args = results_file.parser(__doc__).parse_args()
    if not args.table:
        run_missing(args.jobs)
    print_tables()


if __name__ == "__main__":
    main()
