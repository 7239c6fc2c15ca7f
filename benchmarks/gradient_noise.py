"""
How much of a policy update is signal?

Trains with 8 environments of 256 steps and TRPO's own defaults, then collects forty rollouts with the policy held still. From
each the search direction is computed and scaled to a mean KL of target_kl. What the surrogate gains by that step, to first
order, is computed on the same rollout, as the algorithm sees it, and on the thirty-nine others, as it is: the quotient says
how much of a step is not noise. One row an environment and way to solve: benchmarks/results/gradient_noise.csv.

    python benchmarks/gradient_noise.py            # run what is missing (a quarter of an hour), print the table
    python benchmarks/gradient_noise.py --table    # only print the table of what is there
"""

import argparse
import statistics
import warnings
from pathlib import Path
from typing import Any

import results_file
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo_plus import TRPO, policy_model
from sb3_trpo_plus.kl_controlled import Sample
from sb3_trpo_plus.trust_region.conjugate_gradient import conjugate_gradient
from sb3_trpo_plus.trust_region.fisher import FisherVectorProduct
from sb3_trpo_plus.trust_region.step import largest_step
from sb3_trpo_plus.wrappers import unit_actions

RESULTS = Path(__file__).parent / "results" / "gradient_noise.csv"
STEPS = {"HalfCheetah-v4": 300_000, "Humanoid-v4": 120_000}
SOLVERS = [(0.1, 15), (0.1, 2), (0.1, 60), (1.0, 15), (10.0, 15)]
N_ROLLOUTS = 40
SEED = 2000


def trained(env_id: str) -> TRPO:
    """An agent in the middle of its training."""
    env = VecNormalize(make_vec_env(env_id, 8, seed=SEED, wrapper_class=unit_actions))
    model = TRPO("MlpPolicy", env, n_steps=256, policy_kwargs={"log_std_init": -1}, seed=SEED, device="cpu")
    return model.learn(STEPS[env_id])


def rollouts_of(model: TRPO) -> list[Sample]:
    """Rollouts of the policy as it is."""
    env = model.get_env()
    assert env is not None
    assert isinstance(model.rollout_buffer, RolloutBuffer)
    callback = model._init_callback(None)
    samples = []
    for _ in range(N_ROLLOUTS):
        model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
        samples.append(model._sample())
    return samples


def full_step(fisher: FisherVectorProduct, gradient: th.Tensor, damping: float, cg_max_steps: int, max_kl: float) -> th.Tensor:
    """Of a KL that is the same whatever the damping, which is left out of the quadratic model here."""
    s = conjugate_gradient(lambda v: fisher(v).add_(v, alpha=damping), gradient, cg_max_steps, 1e-5).solution
    return largest_step(s.dot(fisher(s)).item(), max_kl) * s


def measure(env_id: str) -> list[dict[str, Any]]:
    """A row for each way to solve for the direction."""
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    model = trained(env_id)
    steps = model.num_timesteps
    gradients, fishers = [], []
    for rollout in rollouts_of(model):
        distribution = policy_model.action_distribution(model.policy, rollout.observations)
        parameters, gradient = policy_model.actor_gradient(model.policy, model._surrogate(distribution, rollout))
        gradients.append(gradient)
        fishers.append(policy_model.fisher_vector_product(model.policy, rollout.observations, parameters))
    total = th.stack(gradients).sum(0)
    rows = []
    for damping, cg_max_steps in SOLVERS:
        promised, kept = [], []
        for fisher, gradient in zip(fishers, gradients, strict=True):
            step = full_step(fisher, gradient, damping, cg_max_steps, model.kl_limit)
            promised.append(step.dot(gradient).item())
            kept.append(step.dot(total - gradient).item() / (N_ROLLOUTS - 1))
        rows.append(
            {
                "env": env_id,
                "steps": steps,
                "seed": SEED,
                "cg_damping": damping,
                "cg_max_steps": cg_max_steps,
                "promised": f"{statistics.mean(promised):.4g}",
                "kept": f"{statistics.mean(kept):.3g}",
                "kept_standard_error": f"{statistics.stdev(kept) / N_ROLLOUTS**0.5:.2g}",
                **results_file.described(),
            }
        )
    return rows


def print_table() -> None:
    """One Markdown row an environment and solver."""
    print("| environment | after steps | `cg_damping` | `cg_max_steps` | promised by the rollout | kept on the others |")
    print("|---|---|---|---|---|---|")
    for row in results_file.read(RESULTS):
        kept = f"{row['kept']} ± {row['kept_standard_error']}"
        steps = f"{int(row['steps']):,}"
        print("|", " | ".join([row["env"], steps, row["cg_damping"], row["cg_max_steps"], row["promised"], kept]), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    if not parser.parse_args().table:
        done = {row["env"] for row in results_file.read(RESULTS)}
        for env_id in STEPS:
            for row in measure(env_id) if env_id not in done else []:
                results_file.add(RESULTS, row)
    print_table()


if __name__ == "__main__":
    main()
