"""skrl's TRPO, observations and values normalised as in its examples."""

import tempfile
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch as th
import turns
from skrl.agents.torch.trpo import TRPO, TRPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
from skrl.resources.preprocessors.torch import RunningStandardScaler
from skrl.trainers.torch import SequentialTrainer


def network(inputs: int, outputs: int) -> th.nn.Module:
    return th.nn.Sequential(
        th.nn.Linear(inputs, 64), th.nn.Tanh(), th.nn.Linear(64, 64), th.nn.Tanh(), th.nn.Linear(64, outputs)
    )


class Actor(GaussianMixin, Model):  # type: ignore[misc]
    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces, device="cpu")
        GaussianMixin.__init__(self)
        self.mean = network(self.num_observations, self.num_actions)
        self.log_std = th.nn.Parameter(th.zeros(self.num_actions))

    def compute(self, inputs: dict[str, th.Tensor], role: str = "") -> tuple[th.Tensor, dict[str, th.Tensor]]:
        return self.mean(inputs["observations"]), {"log_std": self.log_std}


class Critic(DeterministicMixin, Model):  # type: ignore[misc]
    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces, device="cpu")
        DeterministicMixin.__init__(self)
        self.value = network(self.num_observations, 1)

    def compute(self, inputs: dict[str, th.Tensor], role: str = "") -> tuple[th.Tensor, dict[str, th.Tensor]]:
        return self.value(inputs["observations"]), {}


def prepare(task: dict[str, Any]) -> Callable[[int], object]:
    n_envs, n_steps, settings = task["n_envs"], task["n_steps"], task["settings"]
    env = wrap_env(gym.make_vec(task["env"], num_envs=n_envs, vectorization_mode="sync"))
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    configuration = TRPO_CFG(
        rollouts=n_steps,
        learning_epochs=settings["n_critic_updates"],
        mini_batches=n_envs * n_steps // settings["batch_size"],
        discount_factor=settings["gamma"],
        gae_lambda=settings["gae_lambda"],
        learning_rate=settings["learning_rate"],
        damping=settings["cg_damping"],
        max_kl_divergence=settings["target_kl"],
        conjugate_gradient_steps=settings["cg_max_steps"],
        time_limit_bootstrap=True,
        observation_preprocessor=RunningStandardScaler,
        observation_preprocessor_kwargs={"size": env.observation_space},
        value_preprocessor=RunningStandardScaler,
        value_preprocessor_kwargs={"size": 1},
    )
    configuration.experiment.write_interval = configuration.experiment.checkpoint_interval = 0
    configuration.experiment.directory = tempfile.gettempdir()
    agent = TRPO(
        models={"policy": Actor(**spaces), "value": Critic(**spaces)},
        memory=RandomMemory(memory_size=n_steps, num_envs=n_envs, device="cpu"),
        **spaces,
        device="cpu",
        cfg=configuration,
    )
    trainer = SequentialTrainer(
        env=env, agents=agent, cfg={"timesteps": n_steps, "headless": True, "disable_progressbar": True}
    )

    def learn(steps: int) -> None:
        trainer.cfg.timesteps = steps // n_envs
        trainer.train()

    return learn


if __name__ == "__main__":
    turns.take(prepare)
