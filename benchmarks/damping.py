"""
Does a damping relative to the Fisher matrix's size help where there are many actions?

With Box actions the KL, and with it the Fisher matrix F, is a mean over the actions' dimensions, while cg_damping is added as
it is. So the more actions, the more of s'(F + damping I)s is damping, and the less of target_kl a step uses. Trains with the
default, with a light one, and with 0.1 times the size of F, which is measured at each update in two ways: by its curvature
along the gradient, g'Fg / g'g, and by the mean of its eigenvalues, trace(F) / n, from ten of Hutchinson's probes. Targets-N
has N actions, each of which has to be near a function of the observation. One row a run: benchmarks/results/damping.csv.

    python benchmarks/damping.py            # run what is missing, print the table
    python benchmarks/damping.py --table    # only print the table of what is there
"""

import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import results_file
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.trust_region.fisher import FisherVectorProduct

RESULTS = Path(__file__).parent / "results" / "damping.csv"
STEPS = {"Targets-1000": 20_480, "Targets-100": 20_480, "HalfCheetah-v4": 61_440, "Humanoid-v4": 61_440}
SEEDS = range(3000, 3005)


class Targets(gym.Env[Any, Any]):
    """As many actions as are asked for; the reward is minus their mean squared distance from a function of the observation."""

    def __init__(self, n: int) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (8,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (n,), np.float32)
        self.weights = np.random.default_rng(0).normal(size=(n, 8)) / 2

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def _observe(self) -> Any:
        self.observation = self.np_random.uniform(-1, 1, 8).astype(np.float32)
        return self.observation

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = -float(np.mean((action - np.tanh(self.weights @ self.observation)) ** 2))
        self.steps += 1
        return self._observe(), reward, False, self.steps >= 20, {}


def along_the_gradient(fisher: FisherVectorProduct, gradient: th.Tensor) -> float:
    unit = gradient / th.linalg.vector_norm(gradient)
    return float(unit.dot(fisher(unit)))


def mean_eigenvalue(fisher: FisherVectorProduct, gradient: th.Tensor) -> float:
    generator = th.Generator().manual_seed(0)
    probes = [th.randint(0, 2, gradient.shape, generator=generator).float() * 2 - 1 for _ in range(10)]
    return statistics.mean(probe.dot(fisher(probe)).item() / len(probe) for probe in probes)


WAYS: dict[str, float | Callable[[FisherVectorProduct, th.Tensor], float]] = {
    "0.1": 0.1,
    "0.001": 0.001,
    "0.1 g'Fg / g'g": along_the_gradient,
    "0.1 trace(F) / n": mean_eigenvalue,
}


class Damped(TRPO):
    """TRPO whose damping is measured at each update."""

    size: Any = None

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        _, _, gradient, fisher, *_ = args
        self.cg_damping = 0.1 * self.size(fisher, gradient)
        return super()._step(*args, **kwargs)


class Noted(BaseCallback):
    """The mean return of the last episodes, and what the updates used of target_kl."""

    def __init__(self) -> None:
        super().__init__()
        self.used: list[float] = []
        self.shares: list[float] = []

    def _on_rollout_start(self) -> None:
        step = self.model.last_step  # type: ignore[attr-defined]
        if step is not None and step.accepted:
            self.used.append(step.mean_kl / self.model.kl_limit)  # type: ignore[attr-defined]
            self.shares.append(step.damping_share)

    def _on_step(self) -> bool:
        return True


def train(run: tuple[str, str, int]) -> dict[str, Any]:
    """A row."""
    env_id, way, seed = run
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    size = WAYS[way]
    if env_id.startswith("Targets"):
        env: Any = make_vec_env(lambda: Targets(int(env_id.partition("-")[2])), 8, seed=seed)
        n_steps = 128
    else:
        env, n_steps = VecNormalize(make_vec_env(env_id, 8, seed=seed)), 256
    kwargs: dict[str, Any] = {"n_steps": n_steps, "policy_kwargs": {"log_std_init": -1}, "seed": seed, "device": "cpu"}
    if callable(size):
        model: TRPO = Damped("MlpPolicy", env, **kwargs)
        model.size = size  # type: ignore[attr-defined]
    else:
        model = TRPO("MlpPolicy", env, cg_damping=size, **kwargs)
    noted = Noted()
    model.learn(STEPS[env_id], noted)
    returns = [episode["r"] for episode in model.ep_info_buffer or []]
    return {
        "env": env_id,
        "damping": way,
        "seed": seed,
        "steps": model.num_timesteps,
        "return": f"{statistics.mean(returns):.5g}",
        "kl_used": f"{statistics.median(noted.used or [0.0]):.3g}",
        "damping_share": f"{statistics.median(noted.shares or [0.0]):.3g}",
        **results_file.described(),
    }


def print_table() -> None:
    """One Markdown row an environment and damping: means over the seeds, and the standard deviation of the return."""
    print("| environment | damping | seeds | return | of `target_kl` | of s'As is damping |")
    print("|---|---|---|---|---|---|")
    rows = results_file.read(RESULTS)
    for env_id in STEPS:
        for way in WAYS:
            of_way = [row for row in rows if (row["env"], row["damping"]) == (env_id, way)]
            if len(of_way) > 1:
                returns, used, shares = (
                    [float(row[name]) for row in of_way] for name in ("return", "kl_used", "damping_share")
                )
                cells = [f"{statistics.mean(returns):.4g} ± {statistics.stdev(returns):.2g}"]
                cells += [f"{statistics.mean(used):.1%}", f"{statistics.mean(shares):.1%}"]
                print("|", " | ".join([env_id, way, str(len(of_way)), *cells]), "|")


def main() -> None:
    args = results_file.parser(__doc__).parse_args()
    if not args.table:
        done = {(row["env"], row["damping"], int(row["seed"])) for row in results_file.read(RESULTS)}
        runs = [(env_id, way, seed) for env_id in STEPS for seed in SEEDS for way in WAYS]
        results_file.run_all(RESULTS, train, [run for run in runs if run not in done], args.jobs)
    print_table()


if __name__ == "__main__":
    main()
