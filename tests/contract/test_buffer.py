"""The rollout buffer: what is in it, and whose methods are called."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_trpo_plus import VineTRPO
from tests.conftest import DISTRIBUTIONS
from tests.contract.programs import (
    OTHER_SAMPLE,
    Algorithm,
    Looking,
    assert_at_least,
    contract,
    envs,
    learn,
    make,
    rollout,
)


class Own(RolloutBuffer):
    """A user's buffer, with an argument and a field of its own."""

    def __init__(self, *args: Any, scale: float = 1.0, **kwargs: Any) -> None:
        self.scale, self.calls = scale, dict[str, int]()
        super().__init__(*args, **kwargs)

    def _called(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def reset(self) -> None:
        super().reset()
        self.norms = np.zeros((self.buffer_size, self.n_envs))

    def add(self, obs: Any, action: Any, reward: Any, episode_start: Any, value: Any, log_prob: Any) -> None:
        self._called("add")
        assert isinstance(value, th.Tensor)
        assert isinstance(log_prob, th.Tensor)
        self.norms[self.pos] = np.linalg.norm(obs, axis=1)
        super().add(obs, action, self.scale * reward, episode_start, value, log_prob)

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: Any) -> None:
        self._called("compute")
        assert isinstance(last_values, th.Tensor)
        super().compute_returns_and_advantage(last_values, dones)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@contract()
def test_contents_are_the_same(algorithm: Algorithm, name: str) -> Any:
    """Same seed, same policy: the same rollout, for each of SB3's distributions."""
    space, options = DISTRIBUTIONS[name]
    options = {**options, "policy_kwargs": {"net_arch": [8], **options.get("policy_kwargs", {})}}
    found = rollout(make(algorithm, env=envs(space), **options))
    if name == "gsde_squashed":
        # The log-probability takes the atanh of the action, which near 1 makes rounding errors a million times larger.
        del found["log_probs"]
    return found


@contract()
def test_class_and_sizes(algorithm: Algorithm) -> Any:
    """The class, sizes, spaces and device of the buffer."""
    buffer = make(algorithm).rollout_buffer
    names = ("buffer_size", "n_envs", "obs_shape", "action_dim", "gamma", "gae_lambda", "device", "observation_space")
    return type(buffer).__name__, [getattr(buffer, name) for name in names]


@contract()
def test_dicts_have_their_own_buffer(algorithm: Algorithm) -> Any:
    """Dict observations are kept in a ``DictRolloutBuffer``."""
    space = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (3,)), "b": spaces.Discrete(4)})
    model = make(algorithm, env=envs(observation_space=space), policy="MultiInputPolicy")
    return isinstance(model.rollout_buffer, DictRolloutBuffer), rollout(model)


@contract()
def test_own_class_with_arguments(algorithm: Algorithm) -> Any:
    """``rollout_buffer_class`` and ``rollout_buffer_kwargs``: the class's methods are called, with tensors."""
    model = make(algorithm, rollout_buffer_class=Own, rollout_buffer_kwargs={"scale": 0.5})
    found = rollout(model)
    return found, model.rollout_buffer.calls, model.rollout_buffer.norms


@contract()
def test_own_class_that_changes_nothing(algorithm: Algorithm) -> Any:
    """A subclass without methods of its own is filled as its parent."""
    return rollout(make(algorithm, rollout_buffer_class=type("Same", (RolloutBuffer,), {})))


@contract()
def test_own_class_that_overrides_get(algorithm: Algorithm) -> Any:
    """What the critic's fit and the policy's update see is what ``get`` of the class yields: here zero returns."""

    class Zero(RolloutBuffer):
        def get(self, batch_size: int | None = None) -> Any:
            for part in super().get(batch_size):
                yield part._replace(returns=th.zeros_like(part.returns))

    kwargs: dict[str, Any] = {"bootstrap": True} if issubclass(algorithm, VineTRPO) else {}
    model = make(algorithm, rollout_buffer_class=Zero, n_critic_updates=40, learning_rate=0.01, **kwargs)
    learn(model)
    with th.no_grad():
        return bool(model.policy.predict_values(th.randn(50, 4)).abs().max() < 0.15)


@contract()
def test_add_patched_on_an_instance(algorithm: Algorithm) -> Any:
    """``model.rollout_buffer.add = ...`` is called at each step, with an array, and tensors of values."""
    model, calls = make(algorithm), list[Any]()
    add = model.rollout_buffer.add

    def patched(obs: Any, action: Any, reward: Any, episode_start: Any, value: Any, log_prob: Any) -> None:
        calls.append((type(value).__name__, type(log_prob).__name__, action.shape))
        add(obs, action, 2 * reward, episode_start, value, log_prob)

    model.rollout_buffer.add = patched
    return rollout(model), calls


@contract()
def test_advantages_patched_on_an_instance(algorithm: Algorithm) -> Any:
    """``model.rollout_buffer.compute_returns_and_advantage = ...``: a user's estimator of the advantages."""
    model = make(algorithm)
    buffer = model.rollout_buffer

    def patched(last_values: th.Tensor, dones: Any) -> None:
        buffer.returns = buffer.rewards + 1
        buffer.advantages = buffer.returns - buffer.values + last_values.numpy().flatten()

    buffer.compute_returns_and_advantage = patched
    return rollout(model)


@contract()
def test_reset_patched_on_an_instance(algorithm: Algorithm) -> Any:
    """``model.rollout_buffer.reset = ...`` is called once a rollout."""
    model, calls = make(algorithm), list[int]()
    reset = model.rollout_buffer.reset

    def patched() -> None:
        calls.append(1)
        reset()

    model.rollout_buffer.reset = patched
    return rollout(model), len(calls)


@contract(without={VineTRPO: OTHER_SAMPLE}, compare=assert_at_least)
def test_get_patched_on_an_instance(algorithm: Algorithm) -> Any:
    """``model.rollout_buffer.get = ...`` gives the whole rollout to the policy's update, and minibatches to the critic's."""
    model, calls = make(algorithm), set[Any]()
    get = model.rollout_buffer.get

    def patched(batch_size: int | None = None) -> Any:
        calls.add(batch_size)
        return get(batch_size)

    model.rollout_buffer.get = patched
    learn(model)
    return calls


@contract()
def test_replaced_buffer_is_the_one_filled(algorithm: Algorithm) -> Any:
    """``model.rollout_buffer = ...`` before ``learn``."""
    model = make(algorithm)
    former = model.rollout_buffer
    model.rollout_buffer = RolloutBuffer(
        model.n_steps, model.observation_space, model.action_space, gamma=0.9, gae_lambda=0.5, n_envs=model.n_envs
    )
    found = rollout(model)
    return former.pos, {name: found[name] for name in ("observations", "actions", "values", "log_probs")}


@contract()
def test_gae_lambda_of_the_buffer(algorithm: Algorithm) -> Any:
    """``model.rollout_buffer.gae_lambda = ...`` acts from the next rollout on."""
    model = make(algorithm)
    model.rollout_buffer.gae_lambda = 0.3
    return rollout(model)


@contract()
def test_gamma_and_gae_lambda(algorithm: Algorithm) -> Any:
    """The arguments ``gamma`` and ``gae_lambda`` are those of the advantages and of the bootstraps."""
    return rollout(make(algorithm, gamma=0.7, gae_lambda=0.6))


@contract(without={VineTRPO: OTHER_SAMPLE})
def test_contents_after_the_update(algorithm: Algorithm) -> Any:
    """After ``learn`` the buffer is full and can be drawn from again; its arrays are flattened, as SB3 leaves them."""
    model = make(algorithm)
    learn(model)
    buffer = model.rollout_buffer
    sample = next(buffer.get(batch_size=None))
    kinds = [(name, str(value.dtype), tuple(value.shape)) for name, value in sample._asdict().items()]
    return kinds, buffer.full, buffer.generator_ready, buffer.observations.shape, np.sort(buffer.returns, axis=0)


@pytest.mark.parametrize("n_envs", [1, 3])
@contract()
def test_number_of_environments(algorithm: Algorithm, n_envs: int) -> Any:
    """One environment and three."""
    return rollout(make(algorithm, env=envs(n_envs=n_envs)))


@contract()
def test_second_rollout_begins_where_the_first_ended(algorithm: Algorithm) -> Any:
    """``reset_num_timesteps=False``: episodes go on; nothing is learned here, so the rollouts must be the same."""
    starts: list[Any] = []
    model = make(algorithm, n_steps=6, batch_size=12)
    model.train = lambda: None
    for reset in (True, False):
        keep = Looking(rollout_end=lambda callback: starts.append(callback.model.rollout_buffer.episode_starts.copy()))
        model.learn(12, keep, reset_num_timesteps=reset)
    return starts[0], starts[1], model._last_episode_starts.dtype


@contract()
def test_caller_collects_a_rollout(algorithm: Algorithm) -> Any:
    """``model.collect_rollouts`` called by hand, also for fewer steps than the buffer has, as libraries around SB3 do."""
    model = make(algorithm)
    _, callback = model._setup_learn(64)
    complete = model.collect_rollouts(model.env, callback, model.rollout_buffer, 8)
    buffer = model.rollout_buffer
    return complete, buffer.pos, buffer.full, buffer.values[:8].copy(), buffer.log_probs[:8].copy()
