"""
The picture of a trust region in the README: an update of TRPO on Pendulum-v1 with a light damping, whose first steps are
refused.

    python benchmarks/trust_region.py
"""

import warnings
from pathlib import Path

import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.plots import plot_trust_region

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "trust_region.png"


def main() -> None:
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    model = TRPO(
        "MlpPolicy",
        make_vec_env("Pendulum-v1", 4, seed=2),
        n_steps=512,
        gamma=0.9,
        target_kl=0.03,
        cg_damping=0.001,
        policy_kwargs={"log_std_init": -1},
        seed=2,
        device="cpu",
    )
    model.learn(4 * 2048)
    plot_trust_region(model).savefig(PICTURE, dpi=150)
    assert model.last_step is not None
    print(f"{model.last_step.reason}: {PICTURE}")


if __name__ == "__main__":
    main()
