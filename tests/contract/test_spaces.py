"""Spaces: of actions and observations; and state-dependent exploration, which is for Box actions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from tests.contract.programs import (
    NOT_DIRECTION,
    Algorithm,
    assert_same_direction,
    contract,
    direction,
    envs,
    learn,
    looks,
    make,
    moved,
    rollout,
)

ACTIONS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1.0, 1.0, (3,)),
    "box of one": spaces.Box(-1.0, 1.0, (1,)),
    "box of two dimensions": spaces.Box(-1.0, 1.0, (2, 3)),
    "asymmetric box": spaces.Box(np.array([-0.1, 0.0, -3.0], np.float32), np.array([2.0, 0.5, -1.0], np.float32)),
    "box in double precision": spaces.Box(-1.0, 1.0, (2,), dtype=np.float64),
    "discrete": spaces.Discrete(4),
    "discrete of two": spaces.Discrete(2),
    "multi_discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi_binary": spaces.MultiBinary(3),
}
BOX = spaces.Box(-2.0, 2.0, (3,))
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": BOX,
    "box of two dimensions": spaces.Box(-2.0, 2.0, (2, 3)),
    "box in double precision": spaces.Box(-2.0, 2.0, (3,), dtype=np.float64),
    "box of bytes": spaces.Box(0, 255, (3,), dtype=np.uint8),
    "box of integers": spaces.Box(-5, 5, (3,), dtype=np.int64),
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(4),
    "small image": spaces.Box(0, 255, (2, 2, 3), np.uint8),
    "dict of vectors": spaces.Dict({"b": BOX, "a": spaces.Box(-1.0, 1.0, (2,))}),
    "dict of one vector": spaces.Dict({"a": BOX}),
    "dict of all kinds": spaces.Dict(
        {
            "d": spaces.Discrete(3),
            "m": spaces.MultiDiscrete([2, 3]),
            "b": spaces.MultiBinary(2),
            "v": spaces.Box(-1.0, 1.0, (2, 2)),
        }
    ),
    "dict with image": spaces.Dict({"image": spaces.Box(0, 255, (3, 36, 36), np.uint8), "vector": BOX}),
    "image": spaces.Box(0, 255, (3, 36, 36), np.uint8),
    "image, channels last": spaces.Box(0, 255, (36, 36, 1), np.uint8),
}


def policy_of(name: str) -> dict[str, Any]:
    if name.startswith("dict"):
        kwargs = {"features_extractor_kwargs": {"cnn_output_dim": 4}} if "image" in name else {}
        return {"policy": "MultiInputPolicy", "policy_kwargs": {"net_arch": [8], **kwargs}}
    if name.startswith("image"):
        extractor = {"features_extractor_kwargs": {"features_dim": 4}}
        return {"policy": "CnnPolicy", "policy_kwargs": {"net_arch": [], **extractor}}
    return {}


@pytest.mark.parametrize("name", ACTIONS)
@contract()
def test_actions(algorithm: Algorithm, name: str) -> Any:
    """Each space of actions: the same rollout."""
    return rollout(make(algorithm, envs(ACTIONS[name])))


@pytest.mark.parametrize("name", ACTIONS)
@contract()
def test_actions_that_are_clipped(algorithm: Algorithm, name: str) -> Any:
    """``self.locals['clipped_actions']`` lie in the space; ``actions`` are what the policy made."""
    return looks(
        algorithm, lambda it: [np.array(it.locals[key]) for key in ("clipped_actions", "actions")], env=envs(ACTIONS[name])
    )


@pytest.mark.parametrize("name", ACTIONS)
@contract(without=NOT_DIRECTION, compare=assert_same_direction)
def test_step_for_actions(algorithm: Algorithm, name: str) -> Any:
    """The direction of the update's step for each space of actions."""
    return direction(make(algorithm, envs(ACTIONS[name]), n_critic_updates=0))


@pytest.mark.parametrize("name", OBSERVATIONS)
@contract()
def test_observations(algorithm: Algorithm, name: str) -> Any:
    """Each space of observations: the same rollout."""
    return rollout(make(algorithm, envs(observation_space=OBSERVATIONS[name]), n_steps=16, **policy_of(name)))


@pytest.mark.parametrize("name", [name for name in OBSERVATIONS if "image" not in name])
@contract(without=NOT_DIRECTION, compare=assert_same_direction)
def test_step_for_observations(algorithm: Algorithm, name: str) -> Any:
    """The direction of the update's step for each space of observations."""
    return direction(make(algorithm, envs(observation_space=OBSERVATIONS[name]), n_critic_updates=0, **policy_of(name)))


@pytest.mark.parametrize("name", OBSERVATIONS)
@contract()
def test_observations_in_a_callback(algorithm: Algorithm, name: str) -> Any:
    """``self.locals['obs_tensor']``: a tensor, or a dict of tensors, of the same dtype and shape."""

    def kinds(callback: Any) -> Any:
        found = callback.locals["obs_tensor"]
        parts = found.items() if isinstance(found, dict) else [("", found)]
        return [(key, isinstance(part, th.Tensor), str(part.dtype), tuple(part.shape)) for key, part in sorted(parts)]

    env = envs(observation_space=OBSERVATIONS[name])
    return looks(algorithm, kinds, env=env, n_steps=8, batch_size=16, **policy_of(name))


@pytest.mark.parametrize("name", OBSERVATIONS)
@contract()
def test_predictions_for_observations(algorithm: Algorithm, name: str) -> Any:
    """``predict`` of one observation and of several, as NumPy arrays or dicts of them."""
    space = OBSERVATIONS[name]
    model = make(algorithm, envs(observation_space=space), n_steps=8, batch_size=16, **policy_of(name))
    space.seed(0)
    single = space.sample()
    if isinstance(space, spaces.Dict):
        several: Any = {key: np.stack([part] * 3) for key, part in single.items()}
    else:
        several = np.stack([single] * 3)
    return [model.predict(observation, deterministic=True) for observation in (single, several)]


@contract()
def test_discrete_spaces_that_do_not_start_at_0(algorithm: Algorithm) -> Any:
    """What SB3 says or does about ``Discrete(4, start=2)`` as actions and as observations."""
    results: list[Any] = []
    for make_env in (lambda: envs(spaces.Discrete(4, start=2)), lambda: envs(observation_space=spaces.Discrete(4, start=2))):
        try:
            results.append(rollout(make(algorithm, make_env()))["actions"])
        except Exception as error:
            results.append(f"{type(error).__name__}: {str(error).replace(algorithm.__name__, '')[:60]}")
    return results


@contract()
def test_unbounded_actions_are_refused(algorithm: Algorithm) -> Any:
    """A Box of actions without bounds."""
    with pytest.raises(AssertionError, match="finite lower and upper bound"):
        make(algorithm, envs(spaces.Box(-np.inf, np.inf, (2,))))
    return True


@contract()
def test_tuples_are_refused(algorithm: Algorithm) -> Any:
    """A Tuple of actions is not supported, and the error says what is."""
    with pytest.raises(AssertionError, match="supports") as error:
        make(algorithm, envs(spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)])))
    return "Box" in str(error.value)


SDE: dict[str, dict[str, Any]] = {
    "plain": {},
    "sampled often": {"sde_sample_freq": 3},
    "not full": {"policy_kwargs": {"net_arch": [8], "full_std": False}},
    "expln": {"policy_kwargs": {"net_arch": [8], "use_expln": True}},
    "squashed": {"policy_kwargs": {"net_arch": [8], "squash_output": True}},
    "log_std_init": {"policy_kwargs": {"net_arch": [8], "log_std_init": -1.0}},
    "unshared": {"policy_kwargs": {"net_arch": [8], "share_features_extractor": False}},
    "relu in place": {"policy_kwargs": {"net_arch": [8], "activation_fn": lambda: th.nn.ReLU(inplace=True)}},
}


def learns_features(model: Any) -> Any:
    """``learn_features`` is the distribution's: its standard deviations then move the network, too."""
    model.policy.action_dist.learn_features = True
    return model


@pytest.mark.parametrize("name", SDE)
@contract()
def test_gsde(algorithm: Algorithm, name: str) -> Any:
    """gSDE's options: the same rollout."""
    found = rollout(make(algorithm, use_sde=True, **SDE[name]))
    if name == "squashed":
        # The log-probability takes the atanh of the action, which near 1 makes rounding errors a million times larger.
        del found["log_probs"]
    return found


@pytest.mark.parametrize("name", SDE)
@contract(without=NOT_DIRECTION, compare=assert_same_direction)
def test_step_with_gsde(algorithm: Algorithm, name: str) -> Any:
    """The direction of the update's step with gSDE's options."""
    return direction(make(algorithm, use_sde=True, n_critic_updates=0, **SDE[name]))


@contract()
def test_gsde_that_learns_features(algorithm: Algorithm) -> Any:
    """``learn_features=True``: the same rollout."""
    return rollout(learns_features(make(algorithm, use_sde=True)))


@pytest.mark.parametrize("name", ["plain", "not full", "expln"])
@contract(without=NOT_DIRECTION, compare=assert_same_direction)
def test_step_with_gsde_that_learns_features(algorithm: Algorithm, name: str) -> Any:
    """The direction of the update's step with ``learn_features=True``."""
    return direction(learns_features(make(algorithm, use_sde=True, n_critic_updates=0, **SDE[name])))


@contract()
def test_gsde_is_for_box_actions(algorithm: Algorithm) -> Any:
    """``use_sde`` with Discrete actions."""
    with pytest.raises(ValueError, match="generalized State-Dependent Exploration"):
        make(algorithm, envs("discrete"), use_sde=True)
    return True


@contract()
def test_gsde_moves_its_scale(algorithm: Algorithm) -> Any:
    """``log_std`` of gSDE, of shape (features, actions), is learned."""
    model = make(algorithm, use_sde=True)
    return tuple(model.policy.log_std.shape), moved(model)["log_std"]


def noise_at_once(algorithm: Algorithm, env: Callable[[], Any]) -> int:
    """Elements of the largest tensor that torch makes while collecting."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for one in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(one, th.Tensor):
                    self.largest = max(self.largest, one.numel())
            return result

    model, found = make(algorithm, env(), policy_kwargs={"net_arch": [2]}), list[int]()
    with Largest() as mode:
        # At the end of a rollout SB3 has made no batch of all its steps; the values' batch is small here.
        learn(model, rollout_start=lambda _: setattr(mode, "largest", 0), step=lambda _: found.append(mode.largest))
    return max(found)


@contract()
def test_noise_of_many_actions_is_not_drawn_at_once(algorithm: Algorithm) -> Any:
    """Discrete(5000): no tensor of all steps of a rollout is made while collecting."""
    return noise_at_once(algorithm, lambda: envs(spaces.Discrete(5000))) < 32 * 5000


@contract()
def test_buffer_of_a_learned_model_is_finite(algorithm: Algorithm) -> Any:
    """Three rollouts with each kind of actions."""
    results = []
    for space in ACTIONS.values():
        model = make(algorithm, envs(space))
        learn(model, 3)
        results.append(bool(np.isfinite(model.rollout_buffer.advantages).all()))
    return results
