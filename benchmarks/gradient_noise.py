"""
How much of a policy update is signal?

Trains with 8 environments of 256 steps and TRPO's own defaults, then collects forty rollouts with the policy held still. From
each the search direction is computed and scaled to a mean KL of target_kl. What the surrogate gains by that step, to first
order, is computed on the same rollout, as the algorithm sees it, and on the thirty-nine others, as it is: the quotient says
how much of a step is not noise. The others' advantages are those of a lambda of 0.98, whatever that of the step is: with
little bias, and less noise than with 1. One row an environment and way to a step: benchmarks/results/gradient_noise.csv.

    python benchmarks/gradient_noise.py            # run what is missing (half an hour), print the table
    python benchmarks/gradient_noise.py --table    # only print the table of what is there
"""

import argparse
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import results_file
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.policies.actor import actor_gradient
from sb3_trpo_plus.policies.distributions import action_distribution
from sb3_trpo_plus.policies.fisher import fisher_vector_product
from sb3_trpo_plus.rollouts.collection import Array
from sb3_trpo_plus.rollouts.sample import Sample, normalized
from sb3_trpo_plus.trust_region.conjugate_gradient import conjugate_gradient
from sb3_trpo_plus.trust_region.fisher import FisherVectorProduct
from sb3_trpo_plus.trust_region.step import largest_step
from sb3_trpo_plus.wrappers import unit_actions

RESULTS = Path(__file__).parent / "results" / "gradient_noise.csv"
STEPS = {"HalfCheetah-v4": 300_000, "Hopper-v4": 300_000, "Walker2d-v4": 200_000, "Humanoid-v4": 120_000}
# Damping, iterations, lambda.
WAYS = [
    *[(0.1, 15, 0.95), (0.1, 2, 0.95), (0.1, 60, 0.95), (10.0, 15, 0.95)],
    *[(1.0, 15, gae_lambda) for gae_lambda in (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0)],
]
LAMBDAS = sorted({gae_lambda for *_, gae_lambda in WAYS})
TRUTH = 0.98
N_ROLLOUTS = 40
SEED = 2000


def trained(env_id: str) -> TRPO:
    """An agent in the middle of its training."""
    env = VecNormalize(make_vec_env(env_id, 8, seed=SEED, wrapper_class=unit_actions))
    model = TRPO("MlpPolicy", env, n_steps=256, policy_kwargs={"log_std_init": -1}, seed=SEED, device="cpu")
    return model.learn(STEPS[env_id])


def rollouts_of(model: TRPO) -> Iterator[dict[float, Sample]]:
    """Rollouts of the policy as it is, with the advantages that each lambda gives."""
    env, buffer = model.get_env(), model.rollout_buffer
    assert env is not None
    assert isinstance(buffer, RolloutBuffer)
    callback = model._init_callback(None)

    def flat(array: Array) -> th.Tensor:
        return th.as_tensor(RolloutBuffer.swap_and_flatten(array))

    for _ in range(N_ROLLOUTS):
        model.collect_rollouts(env, callback, buffer, model.n_steps)
        observations, actions, log_probs = map(flat, (buffer.observations, buffer.actions, buffer.log_probs))
        with th.no_grad():
            last_values = model.policy.predict_values(obs_as_tensor(np.asarray(model._last_obs), model.device))
        estimates = {}
        for gae_lambda in LAMBDAS:
            buffer.gae_lambda = gae_lambda
            buffer.compute_returns_and_advantage(last_values, np.asarray(model._last_episode_starts))
            estimates[gae_lambda] = flat(buffer.advantages).flatten()
        yield {
            gae_lambda: Sample(observations, actions, log_probs.flatten(), normalized(raw, True), raw)
            for gae_lambda, raw in estimates.items()
        }


def full_step(fisher: FisherVectorProduct, gradient: th.Tensor, damping: float, cg_max_steps: int, max_kl: float) -> th.Tensor:
    """Of a KL that is the same whatever the damping, which is left out of the quadratic model here."""
    s = conjugate_gradient(lambda v: fisher(v).add_(v, alpha=damping), gradient, cg_max_steps, 1e-5).solution
    return largest_step(s.dot(fisher(s)).item(), max_kl) * s


def mean_of_others(gains: Array) -> tuple[float, float]:
    """
    What steps gain on rollouts that they were not made from.

    :param gains: of the step of rollout i on rollout j, shape (rollouts, rollouts)
    :return: mean and standard error, which a jackknife over the rollouts gives: each is in many of the pairs
    """
    n = len(gains)
    others = gains - np.diag(np.diag(gains))
    without = (others.sum() - others.sum(0) - others.sum(1)) / ((n - 1) * (n - 2))
    return float(others.sum() / (n * (n - 1))), float(np.sqrt((n - 1) * without.var()))


def measure(env_id: str) -> list[dict[str, Any]]:
    """A row for each way to a step."""
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    model = trained(env_id)
    steps = model.num_timesteps
    gradients: list[dict[float, th.Tensor]] = []
    fishers = []
    for rollout in rollouts_of(model):
        observations = rollout[TRUTH].observations
        gradients.append({})
        for gae_lambda, sample in rollout.items():
            surrogate = model._surrogate(action_distribution(model.policy, observations), sample)
            parameters, gradients[-1][gae_lambda] = actor_gradient(model.policy, surrogate)
        fishers.append(fisher_vector_product(model.policy, observations, parameters))
    truths = th.stack([gradient[TRUTH] for gradient in gradients], dim=1)
    rows = []
    for damping, cg_max_steps, gae_lambda in WAYS:
        promised, gains = [], []
        for fisher, gradient in zip(fishers, gradients, strict=True):
            step = full_step(fisher, gradient[gae_lambda], damping, cg_max_steps, model.kl_limit)
            promised.append(step.dot(gradient[gae_lambda]).item())
            gains.append((step @ truths).double().numpy())
        kept, kept_standard_error = mean_of_others(np.stack(gains))
        rows.append(
            {
                "env": env_id,
                "steps": steps,
                "seed": SEED,
                "cg_damping": damping,
                "cg_max_steps": cg_max_steps,
                "gae_lambda": gae_lambda,
                "promised": f"{statistics.mean(promised):.4g}",
                "kept": f"{kept:.3g}",
                "kept_standard_error": f"{kept_standard_error:.2g}",
                **results_file.described(),
            }
        )
    return rows


def print_table() -> None:
    """One Markdown row an environment and way to a step."""
    print(
        "| environment | after steps | `cg_damping` | `cg_max_steps` | `gae_lambda` | promised by the rollout "
        "| kept on the others |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in results_file.read(RESULTS):
        kept = f"{row['kept']} ± {row['kept_standard_error']}"
        steps = f"{int(row['steps']):,}"
        cells = [row["env"], steps, row["cg_damping"], row["cg_max_steps"], row["gae_lambda"], row["promised"], kept]
        print("|", " | ".join(cells), "|")


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
