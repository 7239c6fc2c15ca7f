"""What the tests of rollouts share: models of every space, callbacks, and SB3's own loop with given actions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_trpo_plus import TRPO
from tests.conftest import ACTION_SPACES, DISTRIBUTIONS, RandomEnv

OBSERVATION_SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-2, 2, (4,)),
    "box in double precision": spaces.Box(-2, 2, (2, 3), dtype=np.float64),
    "image": spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8),
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(4),
    # The order of their names is not the one in which they are given.
    "dict": spaces.Dict({"vector": spaces.Box(-2, 2, (3,)), "category": spaces.Discrete(3), "a": spaces.Box(-1, 1, (2, 2))}),
}
FIELDS = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")


class Mixed(RandomEnv):
    """Episodes that end, and others that are cut off."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, bool(self.np_random.random() < 0.05), truncated, info


def make(name: str = "box", observation_space: str = "box", n_envs: int = 3, **kwargs: Any) -> TRPO:
    space, options = DISTRIBUTIONS[name]
    env: Any = make_vec_env(lambda: Mixed(OBSERVATION_SPACES[observation_space], ACTION_SPACES[space]), n_envs, seed=0)
    if observation_space == "box":
        env = VecNormalize(env)
    policy = "MultiInputPolicy" if observation_space == "dict" else "MlpPolicy"
    return TRPO(policy, env, **{"n_steps": 40, "batch_size": 40, "seed": 0, **options, **kwargs})


class NormTanh(nn.Sequential):
    """As it is given for ``activation_fn`` by those who want LayerNorm."""

    def __init__(self) -> None:
        super().__init__(nn.LayerNorm(64), nn.Tanh())
        nn.init.normal_(self[0].weight)


class Recorder(BaseCallback):
    """Keeps what a callback can see in each step."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []
        self.stop_at = stop_at

    def _on_step(self) -> bool:
        # SB3 adds to the rewards in place after the callback.
        self.seen.append({key: x.copy() if isinstance(x, np.ndarray) else x for key, x in self.locals.items()})
        return self.n_calls != self.stop_at


class AtStep(BaseCallback):
    """Calls a function with the model after one step."""

    def __init__(self, step: int, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.step, self.function = step, function

    def _on_step(self) -> bool:
        if self.n_calls == self.step:
            self.function(self.model)
        return True


def collect_with(model: Any, collect_rollouts: Callable[..., bool], callback: BaseCallback | None = None) -> bool:
    """One rollout by this method, which may be that of a class above the model's."""
    _, callback = model._setup_learn(model.n_steps * model.n_envs, callback)
    callback.on_training_start({}, {})
    return collect_rollouts(model, model.env, callback, model.rollout_buffer, model.n_steps)


def replay(model: TRPO, actions: list[Any]) -> None:
    """Let the policy's own forward take these actions."""
    policy, queue = model.policy, iter(actions)

    def forward(observations: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        taken = th.as_tensor(next(queue))
        distribution = policy.get_distribution(observations)
        flat = taken if isinstance(policy.action_space, spaces.Discrete) else taken.reshape(len(taken), -1)
        return taken, policy.predict_values(observations), distribution.log_prob(flat)

    policy.forward = forward


def assert_same_buffers(
    one: RolloutBuffer, other: RolloutBuffer, n_steps: int | None = None, log_prob_atol: float = 1e-5
) -> None:
    assert (one.pos, one.full) == (other.pos, other.full)
    for field in FIELDS:
        ours, theirs = (getattr(buffer, field) for buffer in (one, other))
        named = [(ours[name], theirs[name]) for name in theirs] if isinstance(theirs, dict) else [(ours, theirs)]
        for our, their in named:
            assert (our.dtype, our.shape) == (their.dtype, their.shape), field
            atol = log_prob_atol if field == "log_probs" else 1e-5
            np.testing.assert_allclose(our[:n_steps], their[:n_steps], rtol=1e-4, atol=atol, err_msg=field)


def force_general_path(model: Any) -> None:
    """A hook that does nothing: the policy is not plain any more."""
    model.policy.register_forward_hook(lambda module, inputs, output: None)
