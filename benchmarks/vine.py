"""
What the vine procedure gives for its steps: the noise of its advantage and gradient estimates beside the single path's, from
one fixed policy, and learning curves of both on HalfCheetah-v4.

The policy is trained a little first (not for the ALE game, where it is the initial one). Then

- in fixed states, each action is tried again and again: the variance of a return, which is a single path's estimate less a
  constant, and half the variance of the difference between two actions' returns, which would be the same number if the
  branches of a state shared no random numbers;
- at equal environment steps, rollouts of both kinds are collected from the same policy, and the variance of the surrogate's
  gradient is compared with its squared mean.

    python benchmarks/vine.py            # run what is missing (half an hour on one core), print the tables, draw the curves
    python benchmarks/vine.py --table    # only print the tables of what is there
    python benchmarks/vine.py --draw     # only draw the curves of what is there
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import colours
import numpy as np
import results_file
import torch as th
from family import Curve
from matplotlib.figure import Figure
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_trpo_plus import TRPO, VineTRPO
from sb3_trpo_plus.algorithms.base import KLControlled
from sb3_trpo_plus.algorithms.branches import grow
from sb3_trpo_plus.policies.actor import actor_gradient
from sb3_trpo_plus.policies.distributions import action_distribution
from sb3_trpo_plus.states import get_vec_state

ROOT = Path(__file__).parent
NOISE = ROOT / "results" / "vine_noise.csv"
CURVES = ROOT / "results" / "vine_curves.csv"
PICTURE = ROOT.parent / "docs" / "images" / "vine.png"
# Policy, settings of the vine, steps of training before, repetitions
WORKLOADS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "CartPole-v1": ("MlpPolicy", {"n_steps": 32, "n_rollout_states": 32, "rollout_length": 100}, 15_000, 200),
    "HalfCheetah-v4": ("MlpPolicy", {"n_steps": 64, "n_rollout_states": 32, "rollout_length": 100}, 50_000, 40),
    "ALE/Pong-v5": ("CnnPolicy", {"n_steps": 32, "n_rollout_states": 8, "rollout_length": 50}, 0, 12),
}
STATES = 16
TIMESTEPS, SEEDS = 200_000, range(3)


def make_env(env_id: str, seed: int) -> VecEnv:
    """Eight environments, with what their policies usually have."""
    if env_id.startswith("ALE/"):
        return VecTransposeImage(VecFrameStack(make_atari_env(env_id, 8, seed=seed), 4))
    env = make_vec_env(env_id, 8, seed=seed)
    return VecNormalize(env) if env_id == "HalfCheetah-v4" else env


def gradient_of(model: VineTRPO, sample: Any) -> th.Tensor:
    """Of the surrogate at the policy that collected."""
    distribution = action_distribution(model.policy, sample.observations)
    return actor_gradient(model.policy, sample.expected_advantage(distribution, sample.raw_advantages))[1]


def noise_to_signal(gradients: list[th.Tensor]) -> float:
    """Trace of the covariance over the squared norm of the mean, both without bias."""
    stacked = th.stack(gradients).double()
    n = len(stacked)
    squares, of_sum = stacked.pow(2).sum(), stacked.sum(0).pow(2).sum()
    signal = (of_sum - squares) / (n * (n - 1))
    return float((squares / n - signal) / signal) if signal > 0 else float("inf")


def collected(model: VineTRPO) -> Any:
    """The sample of a new rollout."""
    callback = model._setup_learn(1, reset_num_timesteps=False)[1]
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model._sample()


def without_critic(model: VineTRPO) -> None:
    """Values of 0, and so Monte-Carlo returns."""
    with th.no_grad():
        for parameter in model.policy.value_net.parameters():
            parameter.zero_()


def measure(env_id: str) -> dict[str, Any]:
    """One row."""
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    policy, settings, steps, repetitions = WORKLOADS[env_id]
    env = make_env(env_id, 0)
    start = time.perf_counter()
    trained = TRPO(policy, env, n_steps=256, seed=0, device="cpu")
    if steps:
        trained.learn(steps)
    if isinstance(env, VecNormalize):
        env.training = False
    vine: Any = VineTRPO(policy, env, seed=0, device="cpu", batch_size=8, gae_lambda=1.0, **settings)
    vine.policy.load_state_dict(trained.policy.state_dict())
    without_critic(vine)

    sample = collected(vine)
    before = vine.num_timesteps
    gradients = [gradient_of(vine, collected(vine)) for _ in range(repetitions)]
    vine_steps = (vine.num_timesteps - before) / repetitions
    n_actions = sample.branches.shape[1]

    n_steps = max(2, round(vine_steps / env.num_envs))
    path: Any = VineTRPO(policy, env, n_steps=n_steps, seed=0, device="cpu", n_rollout_states=1, batch_size=8, gae_lambda=1.0)
    path.policy.load_state_dict(vine.policy.state_dict())
    path_gradients = []
    for _ in range(repetitions):
        callback = path._setup_learn(1, reset_num_timesteps=False)[1]
        super(VineTRPO, path).collect_rollouts(env, callback, path.rollout_buffer, n_steps)
        single = KLControlled._sample(path)
        single.raw_advantages.sub_(single.raw_advantages.mean())
        path_gradients.append(gradient_of(path, single))

    states = []
    for _ in range(STATES):
        for _ in range(int(np.random.randint(1, 12))):  # noqa: NPY002
            env.step(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))
        states.append(get_vec_state(env, 0))
    rows = sample.branches.numpy()[:STATES] if n_actions > 2 else np.tile(np.arange(n_actions), (STATES, 1))
    actions = np.resize(rows, (STATES, *rows.shape[1:])).reshape(STATES, n_actions, *(env.action_space.shape or ()))
    tries = []
    for _ in range(repetitions):
        grown = grow(env, states, actions, vine.policy, vine.gamma, settings["rollout_length"], lambda rewards, infos: True)
        assert grown is not None
        tries.append(grown[0])
    returns = np.stack(tries)
    of_path = returns.var(axis=0, ddof=1).mean()
    # The mean over pairs of actions of half the variance of their difference.
    of_vine = (returns - returns.mean(axis=2, keepdims=True)).var(axis=0, ddof=1).mean() * n_actions / (n_actions - 1)
    return {
        "env": env_id,
        "actions": n_actions,
        "rollout_length": settings["rollout_length"],
        "repetitions": repetitions,
        "variance_single_path": f"{of_path:.4g}",
        "variance_vine": f"{of_vine:.4g}",
        "steps": round(vine_steps),
        "q_samples_single_path": n_steps * env.num_envs,
        "q_samples_vine": settings["n_rollout_states"] * n_actions,
        "noise_to_signal_single_path": f"{noise_to_signal(path_gradients):.4g}",
        "noise_to_signal_vine": f"{noise_to_signal(gradients):.4g}",
        "seconds": round(time.perf_counter() - start, 1),
        **results_file.described(),
    }


def learn(procedure: str, seed: int) -> dict[str, Any]:
    """One row of the learning curves."""
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    env = make_env("HalfCheetah-v4", seed)
    shared: dict[str, Any] = {"seed": seed, "device": "cpu", "policy_kwargs": {"log_std_init": -1}}
    model = (
        TRPO("MlpPolicy", env, n_steps=256, **shared)
        if procedure == "single path"
        else VineTRPO(
            "MlpPolicy", env, n_steps=128, n_rollout_states=64, n_actions=4, rollout_length=30, bootstrap=True, **shared
        )
    )
    curve = Curve("HalfCheetah-v4", seed)
    assert isinstance(env, VecNormalize)
    test_env = VecNormalize(curve.env, training=False, norm_reward=False)
    test_env.obs_rms = env.obs_rms
    curve.env = test_env
    start = time.perf_counter()
    model.learn(TIMESTEPS, curve)
    return {
        "procedure": procedure,
        "seed": seed,
        "steps": model.num_timesteps,
        "curve": " ".join(f"{steps}:{mean}" for steps, mean in curve.points),
        "seconds": round(time.perf_counter() - start, 1),
        **results_file.described(),
    }


def run_missing() -> None:
    """What has no row yet."""
    done = {row["env"] for row in results_file.read(NOISE)}
    for env_id in WORKLOADS:
        if env_id not in done:
            results_file.add(NOISE, measure(env_id))
    learned = {(row["procedure"], int(row["seed"])) for row in results_file.read(CURVES)}
    for seed in SEEDS:
        for procedure in ("single path", "vine"):
            if (procedure, seed) not in learned:
                results_file.add(CURVES, learn(procedure, seed))


def print_tables() -> None:
    """Both, in Markdown."""
    print("| environment | actions, steps of a branch | variance of an advantage, single path | vine | ratio |")
    print("|---|---|---|---|---|")
    for row in results_file.read(NOISE):
        ratio = float(row["variance_single_path"]) / float(row["variance_vine"])
        branch = f"{row['actions']}, {row['rollout_length']}"
        print(f"| {row['env']} | {branch} | {row['variance_single_path']} | {row['variance_vine']} | {ratio:.1f} |")
    print("\n| environment | steps of a rollout | Q-values, single path | vine | noise to signal, single path | vine |")
    print("|---|---|---|---|---|---|")
    for row in results_file.read(NOISE):
        cells = [row[name] for name in ("env", "steps", "q_samples_single_path", "q_samples_vine")]
        noises = [float(row[f"noise_to_signal_{procedure}"]) for procedure in ("single_path", "vine")]
        cells += ["no signal seen" if noise == float("inf") else f"{noise:.3g}" for noise in noises]
        print(f"| {' | '.join(cells)} |")


def draw() -> None:
    """Learning curves on HalfCheetah-v4: the mean over the seeds, and each seed."""
    figure = Figure(figsize=(colours.WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    for procedure, colour in {"single path": colours.REFERENCE, "vine": colours.MEMBER}.items():
        rows = [row for row in results_file.read(CURVES) if row["procedure"] == procedure]
        curves = [[tuple(map(float, point.split(":"))) for point in row["curve"].split()] for row in rows]
        if not curves:
            continue
        steps = [step for step, _ in min(curves, key=len)]
        for curve in curves:
            axes.plot(steps, [mean for _, mean in curve[: len(steps)]], color=colour, alpha=0.45, linewidth=1)
        means = [statistics.mean(curve[point][1] for curve in curves) for point in range(len(steps))]
        label = f"{'TRPO, single path' if procedure == 'single path' else 'VineTRPO'}: mean of {len(curves)} seeds"
        axes.plot(steps, means, color=colour, linewidth=2.5, label=label)
    axes.plot([], [], color="black", alpha=0.45, linewidth=1, label="each seed")
    axes.set(
        xlabel="environment steps, branches included", ylabel="return of an episode", title="HalfCheetah-v4", xlim=(0, None)
    )
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(PICTURE, dpi=colours.DPI)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the tables of what is there")
    parser.add_argument("--draw", action="store_true", help="only draw what is there")
    args = parser.parse_args()
    results_file.carry_out(args, run_missing, draw, print_tables)


if __name__ == "__main__":
    main()
