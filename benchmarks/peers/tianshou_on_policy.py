"""Tianshou's TRPO and PPO, observations and returns normalised as in its MuJoCo examples."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch as th
import turns
from tianshou.algorithm import PPO, TRPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv, VectorEnvNormObs
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from torch.distributions import Distribution, Independent, Normal


def gaussian(mean_and_deviation: tuple[th.Tensor, th.Tensor]) -> Distribution:
    return Independent(Normal(*mean_and_deviation), 1)


def prepare(task: dict[str, Any]) -> Callable[[int], object]:
    env_id, n_envs, rollout, settings = task["env"], task["n_envs"], task["n_envs"] * task["n_steps"], task["settings"]
    envs = VectorEnvNormObs(DummyVectorEnv([lambda: gym.make(env_id) for _ in range(n_envs)]))
    observations, actions = envs.observation_space[0], envs.action_space[0]

    def hidden() -> Net:
        return Net(state_shape=observations.shape, hidden_sizes=[64, 64], activation=th.nn.Tanh)

    policy = ProbabilisticActorPolicy(
        actor=ContinuousActorProbabilistic(preprocess_net=hidden(), action_shape=actions.shape, unbounded=True),
        dist_fn=gaussian,
        action_space=actions,
    )
    shared = {
        "policy": policy,
        "critic": ContinuousCritic(preprocess_net=hidden()),
        "optim": AdamOptimizerFactory(lr=settings["learning_rate"]),
        "gamma": settings["gamma"],
        "gae_lambda": settings["gae_lambda"],
        "return_scaling": True,
    }
    if task["algorithm"] == "TRPO":
        epochs, batch_size = 1, None  # of this many samples it makes an update of the policy
        algorithm = TRPO(**shared, max_kl=settings["target_kl"], optim_critic_iters=settings["n_critic_updates"])
    else:
        epochs, batch_size = settings["n_epochs"], settings["batch_size"]
        algorithm = PPO(**shared, ent_coef=0.0, max_grad_norm=0.5)
    collector = Collector(algorithm, envs, VectorReplayBuffer(rollout, n_envs))

    def learn(steps: int) -> None:
        algorithm.run_training(
            OnPolicyTrainerParams(
                training_collector=collector,
                max_epochs=1,
                epoch_num_steps=steps,
                collection_step_num_env_steps=rollout,
                update_step_num_repetitions=epochs,
                batch_size=batch_size,
                show_progress=False,
                verbose=False,
            )
        )

    return learn


if __name__ == "__main__":
    turns.take(prepare)
