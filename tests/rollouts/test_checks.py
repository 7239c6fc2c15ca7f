"""What is not finite is named, no action is taken on it, and the model is as it was."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.rollouts.checks import NotFiniteError, first_broken_parameter, first_not_finite, named, refuse_to_act
from tests.conftest import ACTION_SPACES, DISTRIBUTIONS, RandomEnv, collect, parameters_of, random_env
from tests.rollouts.conftest import OBSERVATION_SPACES, Recorder, force_general_path, make

WHEN = "before step 3 of the rollout"
PATHS = ("fast", "watched", "general")


@pytest.fixture(autouse=True)
def torch_checks_its_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file's ``torch.compile`` has switched that off, where it ran in the same process before."""
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", True)


@pytest.fixture
def policy() -> ActorCriticPolicy:
    return make().policy


def refusal(observations: Any, policy: ActorCriticPolicy) -> str:
    with pytest.raises(NotFiniteError) as error:
        refuse_to_act(observations, policy, WHEN)
    return str(error.value)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_observation_is_named_by_environment_and_place(value: float, word: str, policy: ActorCriticPolicy) -> None:
    observations = np.zeros((3, 4), np.float32)
    observations[1, 2:] = value
    observations[2, 0] = np.nan
    words = refusal(observations, policy)
    assert words.startswith(
        f"Environment 1 gave an observation that is not finite {WHEN}: {word} at index 2, and 2 such numbers"
    )
    assert "VecCheckNan" in words


def test_part_of_a_dict_observation_is_named(policy: ActorCriticPolicy) -> None:
    observations = {"category": np.ones((2,), np.int64), "vector": np.zeros((2, 2, 2)), "other": np.full((2, 1), np.nan)}
    observations["vector"][0, 1, 0] = np.inf
    words = refusal(observations, policy)
    assert words.startswith(f"Environment 0 gave an observation vector that is not finite {WHEN}: inf at index 2, and 1 such")


def test_parameter_that_is_not_finite_is_named(policy: ActorCriticPolicy) -> None:
    assert first_broken_parameter(policy) is None
    with th.no_grad():
        policy.action_net.weight[0, 0] = np.nan
        policy.value_net.bias[0] = np.inf
    assert first_broken_parameter(policy) == "action_net.weight"
    assert refusal(np.zeros((3, 4)), policy) == (
        f"The policy's actions are not finite {WHEN}, while the observations are: its action_net.weight is not"
    )


def test_overflow_is_named_where_all_else_is_finite(policy: ActorCriticPolicy) -> None:
    words = refusal(np.full((2, 4), 1e38), policy)
    assert words.startswith(f"The policy's actions are not finite {WHEN}, while the observations are: its outputs overflow")
    assert "VecNormalize" in words


def test_observation_is_named_before_a_parameter(policy: ActorCriticPolicy) -> None:
    with th.no_grad():
        policy.action_net.weight[0, 0] = np.nan
    assert "Environment 0 gave an observation" in refusal(np.full((1, 4), np.nan), policy)


def test_arrays_are_named() -> None:
    array = np.zeros(2)
    assert named(array) == [("observation", array)]
    assert named({"a": array, "b": array}) == [("observation a", array), ("observation b", array)]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("observations", "observations"), ("rewards", "rewards"), ("values", "values"), ("log_probs", "log-probabilities"),
        ("advantages", "advantages"),
    ],
)  # fmt: skip
def test_first_not_finite_part_of_a_rollout_is_named(part: str, words: str) -> None:
    buffer = collect(make("box")).rollout_buffer
    assert first_not_finite(buffer) is None
    getattr(buffer, part).flat[3] = np.nan
    found = first_not_finite(buffer)
    assert found is not None
    assert words in found


def test_first_not_finite_part_of_a_rollout_is_the_cause() -> None:
    """One thing spoils the next: observations the log-probabilities, rewards and values the advantages."""
    buffer = collect(make("box", "dict")).rollout_buffer
    assert first_not_finite(buffer) is None
    found = []
    for array in (buffer.advantages, buffer.values, buffer.rewards, buffer.log_probs, buffer.observations["vector"]):
        array.flat[3] = np.inf
        found.append(first_not_finite(buffer))
    assert found == ["advantages", "values", "rewards", "log-probabilities of the actions", "observations vector"]


class Broken(RandomEnv):
    """An observation that is not finite after some steps, once."""

    value, at = np.nan, 7
    n_steps = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert np.isfinite(action).all(), "no action is taken on it"
        observation, *rest = super().step(action)
        self.n_steps += 1
        if self.n_steps == self.at:
            part = observation["vector"] if isinstance(observation, dict) else observation
            part[1] = self.value
        return observation, *rest  # type: ignore[return-value]


def broken_model(name: str, path: str, observation_space: str = "box", **kwargs: Any) -> tuple[TRPO, Broken]:
    space, options = DISTRIBUTIONS[name]
    env = Broken(OBSERVATION_SPACES[observation_space], ACTION_SPACES[space])
    policy = "MultiInputPolicy" if observation_space == "dict" else "MlpPolicy"
    model = TRPO(policy, env, **{"n_steps": 20, "batch_size": 20, "seed": 0, **options, **kwargs})
    if path == "general":
        force_general_path(model)
    return model, env


def assert_refused_and_as_it_was(model: TRPO, env: Broken, path: str, words: str) -> None:
    """And that it goes on where the environment gives better ones."""
    before, kinds = parameters_of(model), (type(model.rollout_buffer), type(model.policy.action_dist))
    recorder = Recorder()
    with pytest.raises(NotFiniteError, match=words):
        model.learn(40, recorder if path == "watched" else None)
    assert env.n_steps == model.num_timesteps == model.rollout_buffer.pos == 7
    assert path != "watched" or len(recorder.seen) == 7
    assert all(th.equal(value, before[name]) for name, value in parameters_of(model).items())
    assert (type(model.rollout_buffer), type(model.policy.action_dist)) == kinds
    assert np.isfinite(model.rollout_buffer.values[:7]).all()
    assert np.isfinite(model.rollout_buffer.log_probs[:7]).all()
    model.learn(20)
    assert any(not th.equal(value, before[name]) for name, value in parameters_of(model).items())
    assert all(value.isfinite().all() for value in parameters_of(model).values())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_nan_is_refused_at_its_step(name: str, path: str) -> None:
    model, env = broken_model(name, path)
    words = r"Environment 0 gave an observation that is not finite before step 8 of the rollout: nan at index 1, and 1 such"
    assert_refused_and_as_it_was(model, env, path, words)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["box", "discrete"])
def test_nan_in_a_dict_is_refused_at_its_step(name: str, path: str) -> None:
    model, env = broken_model(name, path, "dict")
    words = r"Environment 0 gave an observation vector that is not finite before step 8 of the rollout: nan at index 1, and"
    assert_refused_and_as_it_was(model, env, path, words)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", [th.nn.ReLU, th.nn.Tanh])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_refused_at_its_step(value: float, activation: type[th.nn.Module], path: str) -> None:
    """Although activations such as tanh make finite numbers of it."""
    model, env = broken_model("box", path, policy_kwargs={"activation_fn": activation})
    env.value = value
    assert_refused_and_as_it_was(model, env, path, r"Environment 0 gave an observation .* before step 8 .*: -?inf at index 1")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("torch_checks", [True, False])
@pytest.mark.parametrize("outputs", ["inf", "nan"])
@pytest.mark.parametrize("name", ACTION_SPACES)
def test_outputs_that_overflow_are_refused_at_their_step(
    name: str, outputs: str, torch_checks: bool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not torch's distributions look at their parameters: its first ``compile`` ends that for the whole process."""
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", torch_checks)
    model, env = broken_model(name, path, policy_kwargs={"activation_fn": th.nn.ReLU})
    with th.no_grad():
        for layer in (*model.policy.mlp_extractor.policy_net[::2], model.policy.action_net):
            layer.weight.abs_().add_(1e-3)
        model.policy.mlp_extractor.policy_net[0].weight.mul_(1e3)
        if outputs == "nan":
            model.policy.action_net.weight[:, 0].neg_()
    env.value = 3e38
    words = r"actions are not finite before step 8 of the rollout, while the observations are: its outputs overflow"
    assert_refused_and_as_it_was(model, env, path, words)


@pytest.mark.parametrize("path", PATHS)
def test_parameter_that_becomes_nan_is_refused_before_the_first_step(path: str) -> None:
    model, env = broken_model("discrete", path)
    with th.no_grad():
        model.policy.action_net.bias[1] = np.nan
    with pytest.raises(NotFiniteError, match=r"before step 1 of the rollout.*its action_net\.bias is not"):
        model.learn(20, Recorder() if path == "watched" else None)
    assert env.n_steps == 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ACTION_SPACES)
def test_nan_is_refused_where_torchs_distributions_look_at_nothing(
    name: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users switch their checks off for speed, and so does ``torch.compile``, for the whole process."""
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", False)
    model, env = broken_model(name, path)
    assert_refused_and_as_it_was(model, env, path, r"Environment 0 gave an observation .* before step 8 of the rollout: nan")


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_other_errors_of_a_policy_are_its_own(kind: type[Exception]) -> None:
    """The user's code raises such errors, too, and they are not taken for those of torch's distributions."""
    model = make()

    def forward(*args: Any, **kwargs: Any) -> Any:
        raise kind("the user's own")

    model.policy.forward = forward
    with pytest.raises(kind, match="the user's own") as error:
        collect(model)
    assert type(error.value) is kind


def test_observations_of_whole_numbers_are_looked_at_as_well() -> None:
    """They are always finite, so what is to blame comes next."""
    model = TRPO("MlpPolicy", RandomEnv(spaces.Discrete(5), ACTION_SPACES["box"]), n_steps=20, batch_size=20, seed=0)
    with th.no_grad():
        model.policy.log_std.fill_(np.nan)
    words = refusal(np.zeros((2,), np.int64), model.policy)
    assert words.endswith("its log_std is not")


@pytest.mark.parametrize("log_std", [100.0, float("nan")])
def test_noise_that_is_not_finite_is_refused(log_std: float) -> None:
    """The means are finite, and what the noise makes of them is not."""
    model = TRPO("MlpPolicy", random_env(), n_steps=32, batch_size=32, seed=0, device="cpu")
    model.policy.log_std.data.fill_(log_std)
    with pytest.raises(NotFiniteError, match="not finite"):
        model.learn(32)
