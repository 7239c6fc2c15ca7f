"""Saving and loading: models and policies, here and with sb3-contrib, and what must not open."""

import copy
import io
import json
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO, load_vec_normalize
from tests.conftest import forget_what_was_saved
from tests.contract.programs import (
    FAMILY,
    MORE_STEPS,
    OTHER_SAMPLE,
    Algorithm,
    Episodes,
    Raises,
    assert_at_least,
    contract,
    envs,
    flat_parameters,
    learn,
    make,
    rollout,
    settings,
)

OBSERVATIONS = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
NOT_TRPO = dict.fromkeys((NPG, PPOPenalty, VineTRPO), "its files are its own")


def saved(model: Any, **kwargs: Any) -> io.BytesIO:
    file = io.BytesIO()
    model.save(file, **kwargs)
    file.seek(0)
    return file


def trained(algorithm: Algorithm, **kwargs: Any) -> Any:
    return make(algorithm, **kwargs).learn(64)


def acts(model: Any) -> Any:
    return model.predict(OBSERVATIONS, deterministic=True)[0]


@contract()
def test_loaded_model_acts_the_same(algorithm: Algorithm) -> Any:
    """Save to a file in memory, load, predict."""
    model = trained(algorithm)
    loaded = algorithm.load(saved(model))
    return np.array_equal(acts(model), acts(loaded)), type(loaded) is algorithm


@pytest.mark.parametrize("name", ["agent", "agent.zip", "a.b", "deep/er/agent"])
@contract()
def test_path(algorithm: Algorithm, name: str) -> Any:
    """Paths as strings and as ``Path``, with and without suffix, in folders that do not exist yet."""
    model = make(algorithm)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / name
        model.save(path)
        loaded = [algorithm.load(path), algorithm.load(str(path))]
        files = sorted(str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file())
    return files, [np.array_equal(acts(model), acts(one)) for one in loaded]


@contract()
def test_open_file(algorithm: Algorithm) -> Any:
    """An open binary file, written and read where it stands."""
    model = make(algorithm)
    with tempfile.TemporaryFile() as file:
        model.save(file)
        file.seek(0)
        return np.array_equal(acts(model), acts(algorithm.load(file)))


@contract(without=NOT_TRPO)
def test_sb3_contrib_opens_our_file(algorithm: Algorithm) -> Any:
    """A file saved here opens there, and is trained on."""
    model = trained(algorithm)
    there = sb3_contrib.TRPO.load(saved(model), env=envs())
    same = np.array_equal(acts(model), acts(there))
    learn(there)
    return same


@contract(without=NOT_TRPO)
def test_file_of_sb3_contrib_is_opened(algorithm: Algorithm) -> Any:
    """A file saved there opens here, and is trained on: the next rollout is the same."""
    theirs = make(sb3_contrib.TRPO, learning_rate=0.01).learn(128)
    file = saved(theirs)
    here = algorithm.load(file, env=envs())
    assert np.array_equal(acts(theirs), acts(here))
    th.manual_seed(0)
    found = rollout(here)
    learn(here)
    return found, here.n_steps, here.num_timesteps, here.learning_rate


@contract(without=NOT_TRPO)
def test_parameters_of_sb3_contrib_are_set(algorithm: Algorithm) -> Any:
    """``set_parameters`` with what ``get_parameters`` of sb3-contrib's model gives."""
    theirs, ours = make(sb3_contrib.TRPO).learn(64), make(algorithm, seed=5)
    ours.set_parameters(theirs.get_parameters())
    return acts(ours)


@contract()
def test_names_of_the_parameters(algorithm: Algorithm) -> Any:
    """``get_parameters``: the policy and its optimiser, with SB3's names."""
    parameters = trained(algorithm).get_parameters()
    return {name: set(state) for name, state in parameters.items()}


@contract()
def test_set_parameters(algorithm: Algorithm) -> Any:
    """From a dict and from a file; a name that is unknown, or one that is missing, is a ValueError."""
    model, other = trained(algorithm), make(algorithm, seed=3)
    file = saved(model)
    other.set_parameters(file)
    same = np.array_equal(flat_parameters(model), flat_parameters(other))
    for wrong in ({"nothing": {}}, {"policy": model.get_parameters()["policy"]}):
        with pytest.raises(ValueError, match=r"Key nothing|do not match"):
            other.set_parameters(wrong)
    other.set_parameters({"policy": make(algorithm, seed=9).get_parameters()["policy"]}, exact_match=False)
    return same, np.array_equal(flat_parameters(model), flat_parameters(other))


@contract()
def test_exclude_and_include(algorithm: Algorithm) -> Any:
    """``save(exclude=..., include=...)``."""
    model = make(algorithm)
    model.mine, model.not_mine = 5, 6
    data, _, _ = load_from_zip_file(saved(model, exclude=["not_mine"], include=["_last_obs", "rollout_buffer"]))
    assert data is not None
    return [name in data for name in ("mine", "not_mine", "rollout_buffer", "policy", "env", "logger", "replay_buffer")]


@contract(without=NOT_TRPO, compare=assert_at_least)
def test_names_in_the_file(algorithm: Algorithm) -> Any:
    """The data of the file has all the names that sb3-contrib's has."""
    with zipfile.ZipFile(saved(trained(algorithm))) as archive:
        return set(json.loads(archive.read("data"))) | set(archive.namelist())


@contract()
def test_file_holds_no_rollout(algorithm: Algorithm) -> Any:
    """Samples of the last rollout are not saved: a file with a large one is as small as another."""
    sizes = []
    for n_steps in (32, 256):
        model = make(algorithm, n_steps=n_steps)
        learn(model)
        sizes.append(len(saved(model).getvalue()))
    return sizes[1] - sizes[0] < 2000


@contract()
def test_custom_objects(algorithm: Algorithm) -> Any:
    """``custom_objects`` stand in for what is in the file."""
    model = make(algorithm, learning_rate=lambda progress: 0.01 * progress)
    custom = {"learning_rate": 0.5, "lr_schedule": lambda _: 0.5, "n_steps": 16}
    loaded = algorithm.load(saved(model), custom_objects=custom)
    return loaded.learning_rate, loaded.lr_schedule(0.3), loaded.n_steps, loaded.rollout_buffer.buffer_size


@contract()
def test_arguments_of_load(algorithm: Algorithm) -> Any:
    """``load(path, n_steps=..., gamma=..., seed=...)``."""
    loaded = algorithm.load(saved(make(algorithm)), env=envs(n_envs=4), n_steps=16, gamma=0.5, batch_size=8)
    return (
        loaded.n_steps,
        loaded.n_envs,
        loaded.gamma,
        loaded.rollout_buffer.gamma,
        loaded.rollout_buffer.n_envs,
        loaded.batch_size,
    )


@contract()
def test_other_policy_kwargs_are_refused(algorithm: Algorithm) -> Any:
    """``policy_kwargs`` that are not those of the file."""
    with pytest.raises(ValueError, match="policy kwargs do not equal"):
        algorithm.load(saved(make(algorithm)), policy_kwargs={"net_arch": [3]})
    return True


@contract()
def test_other_spaces_are_refused(algorithm: Algorithm) -> Any:
    """An environment whose spaces are not those of the file."""
    with pytest.raises(ValueError, match="spaces do not match"):
        algorithm.load(saved(make(algorithm)), env=envs("discrete"))
    return True


@contract()
def test_device(algorithm: Algorithm) -> Any:
    """``load(device=...)``."""
    return [str(algorithm.load(saved(make(algorithm)), device=device).device) for device in ("cpu", th.device("cpu"))]


@contract()
def test_system_info(algorithm: Algorithm) -> Any:
    """``load(print_system_info=True)`` prints both systems."""
    file = saved(make(algorithm))
    with redirect_stdout(io.StringIO()) as out:
        algorithm.load(file, print_system_info=True)
    return [words in out.getvalue() for words in ("CURRENT SYSTEM INFO", "SAVED MODEL SYSTEM INFO", "Stable-Baselines3")]


@contract()
def test_missing_file(algorithm: Algorithm) -> Any:
    """FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        algorithm.load("there/is/no/such/agent")
    return True


@contract()
def test_optimizer_is_saved(algorithm: Algorithm) -> Any:
    """The state of the optimiser comes back: moments and steps of each parameter that has some."""
    model = trained(algorithm)
    before, after = model.policy.optimizer.state_dict(), algorithm.load(saved(model)).policy.optimizer.state_dict()
    assert before["state"].keys() == after["state"].keys()
    equal = [th.equal(value, after["state"][i][name]) for i, state in before["state"].items() for name, value in state.items()]
    return all(equal), before["param_groups"] == after["param_groups"]


@contract()
def test_optimizers_state_is_of_sb3s_form(algorithm: Algorithm) -> Any:
    """Each parameter's state: ``step``, ``exp_avg`` and ``exp_avg_sq``, tensors of its shape."""
    kwargs: dict[str, Any] = {"bootstrap": True} if issubclass(algorithm, VineTRPO) else {}
    model = make(algorithm, **kwargs).learn(64)
    state = model.policy.optimizer.state[model.policy.value_net.weight]
    return {name: (str(value.dtype), tuple(value.shape), str(value.device)) for name, value in state.items()}


@contract(without={VineTRPO: MORE_STEPS})
def test_loaded_model_learns_on_as_the_one_that_was_saved(algorithm: Algorithm) -> Any:
    """A rollout and an update after loading end with the same parameters as without saving."""
    model = trained(algorithm)
    file, env = saved(model), envs()
    loaded = algorithm.load(file, env=env)
    model.set_env(envs())
    results = []
    for one in (model, loaded):
        one.set_random_seed(4)
        one.learn(64)
        results.append(flat_parameters(one))
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)
    return len(results[0])


@contract(without={VineTRPO: MORE_STEPS})
def test_loaded_model_goes_on_counting(algorithm: Algorithm) -> Any:
    """``num_timesteps`` and ``_n_updates`` of a loaded model, with and without reset."""
    file = saved(trained(algorithm))
    counts = []
    for reset in (True, False):
        file.seek(0)
        model = algorithm.load(file, env=envs())
        model.learn(64, reset_num_timesteps=reset)
        counts.append((model.num_timesteps, model._n_updates))
    return counts


class WithExtra:
    """Makes an algorithm one that has a network of its own, and a tensor."""

    def _setup_model(self) -> None:
        super()._setup_model()  # type: ignore[misc]
        self.extra, self.number = nn.Linear(2, 2), th.zeros(3, requires_grad=True)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "not_saved"]  # type: ignore[misc]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()  # type: ignore[misc]
        return [*names, "extra"], [*variables, "number"]


class WithoutOptimizer:
    """Makes an algorithm one that saves no optimiser."""

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy"], []


def subclass(algorithm: Algorithm, mixin: type[Any]) -> Any:
    return type(algorithm.__name__, (mixin, algorithm), {})


@contract()
def test_subclass_that_saves_more(algorithm: Algorithm) -> Any:
    """A subclass with its own ``_get_torch_save_params`` and ``_excluded_save_params``."""
    cls = subclass(algorithm, WithExtra)
    model = make(cls)
    model.not_saved = "nothing"
    with th.no_grad():
        model.extra.weight.fill_(3.0)
        model.number.fill_(4.0)
    loaded = cls.load(saved(model))
    return loaded.extra.weight.detach(), loaded.number.detach(), hasattr(loaded, "not_saved"), acts(loaded)


@contract()
def test_subclass_that_saves_no_optimizer(algorithm: Algorithm) -> Any:
    """A subclass that saves the policy alone opens its files."""
    cls = subclass(algorithm, WithoutOptimizer)
    model = make(cls)
    return np.array_equal(acts(cls.load(saved(model))), acts(model))


@contract()
def test_subclass_with_arguments_of_its_own(algorithm: Algorithm) -> Any:
    """A subclass with attributes of its own, which are saved."""

    class Mine(algorithm):  # type: ignore[misc,valid-type]
        def __init__(self, *args: Any, mine: int = 1, **kwargs: Any) -> None:
            self.mine = mine
            super().__init__(*args, **kwargs)

    model = Mine("MlpPolicy", envs(), mine=7, **settings(algorithm))
    return Mine.load(saved(model)).mine


@contract()
def test_policy_is_saved_and_loaded(algorithm: Algorithm) -> Any:
    """``model.policy.save`` and ``ActorCriticPolicy.load``."""
    model = trained(algorithm)
    file = io.BytesIO()
    model.policy.save(file)
    file.seek(0)
    policy = ActorCriticPolicy.load(file)
    return np.array_equal(policy.predict(OBSERVATIONS, deterministic=True)[0], acts(model))


@contract()
def test_policy_is_pickled(algorithm: Algorithm) -> Any:
    """``pickle`` of a trained policy."""
    model = trained(algorithm)
    policy = pickle.loads(pickle.dumps(model.policy))
    return np.array_equal(policy.predict(OBSERVATIONS, deterministic=True)[0], acts(model))


@contract()
def test_policy_is_copied_after_an_update(algorithm: Algorithm) -> Any:
    """``copy.deepcopy(model.policy)``."""
    model = trained(algorithm)
    return np.array_equal(copy.deepcopy(model.policy).predict(OBSERVATIONS, deterministic=True)[0], acts(model))


class Still(Episodes):
    """An environment in which nothing is ever rewarded."""

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, 0.0, *rest


@pytest.mark.parametrize("policy", ["MlpPolicy", "subclass"])
@contract()
def test_policy_is_copied_after_a_skipped_update(algorithm: Algorithm, policy: str) -> Any:
    """The same where all advantages are 0, and nothing moves."""
    cls: Any = "MlpPolicy" if policy == "MlpPolicy" else type("Mine", (ActorCriticPolicy,), {"get_distribution": _as_it_is})
    model = make(algorithm, envs(env_class=Still), cls, normalize_advantage=False)
    for parameter in model.policy.value_net.parameters():
        parameter.data.zero_()
    before = acts(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.learn(64)
    copied = copy.deepcopy(model.policy).predict(OBSERVATIONS, deterministic=True)[0]
    return np.array_equal(acts(model), before), np.array_equal(copied, before)


def _as_it_is(policy: Any, obs: Any) -> Any:
    return ActorCriticPolicy.get_distribution(policy, obs)


@contract()
def test_policy_is_copied_after_a_callback_ended_the_training(algorithm: Algorithm) -> Any:
    """``copy.deepcopy(model.policy)`` where the rollout was not completed."""
    model = make(algorithm)
    model.learn(640, lambda local, of_module: local["self"].num_timesteps < 20)
    return np.array_equal(copy.deepcopy(model.policy).predict(OBSERVATIONS, deterministic=True)[0], acts(model))


@pytest.mark.parametrize("other", FAMILY)
@contract(contrib=Raises(AssertionError, "opened"), documented=True)
def test_files_of_another_member_are_refused(algorithm: Algorithm, other: Algorithm) -> Any:
    """A file of one member opened as another: a ValueError that says so; sb3-contrib asks no questions."""
    file = saved(make(other))
    if other is algorithm:
        return acts(algorithm.load(file)).shape == (10, 3)
    try:
        algorithm.load(file)
    except ValueError as error:
        return "another algorithm" in str(error)
    raise AssertionError("it was opened")


@pytest.mark.parametrize("other", [stable_baselines3.PPO, stable_baselines3.A2C])
@contract(contrib=Raises(AssertionError, "opened"), documented=True)
def test_files_of_sb3_are_refused(algorithm: Algorithm, other: Algorithm) -> Any:
    """A file of PPO or A2C: a ValueError that says so; sb3-contrib opens it."""
    file = saved(other("MlpPolicy", envs(), n_steps=32, device="cpu"))
    try:
        algorithm.load(file)
    except ValueError as error:
        return "another algorithm" in str(error)
    raise AssertionError("it was opened")


@pytest.mark.parametrize("member", NOT_TRPO)
def test_files_of_sb3_contrib_are_opened_by_trpo_alone(member: Algorithm) -> None:
    """sb3-contrib's TRPO file opened as NPG, PPOPenalty or VineTRPO."""
    with pytest.raises(ValueError, match="another algorithm"):
        member.load(saved(make(sb3_contrib.TRPO)))


@contract()
def test_damaged_file_is_refused(algorithm: Algorithm) -> Any:
    """Half a file is a ValueError, or zipfile's BadZipFile as in SB3."""
    half = saved(make(algorithm)).getvalue()
    with pytest.raises((ValueError, zipfile.BadZipFile)):
        algorithm.load(io.BytesIO(half[: len(half) // 2]))
    return True


POLICIES: dict[str, Callable[[], dict[str, Any]]] = {
    "gsde": lambda: {"use_sde": True},
    "unshared": lambda: {"policy_kwargs": {"net_arch": [4], "share_features_extractor": False}},
    "sgd": lambda: {
        "policy_kwargs": {"net_arch": [4], "optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.5}}
    },
    "activation": lambda: {"policy_kwargs": {"net_arch": {"pi": [4], "vf": [3]}, "activation_fn": nn.ELU}},
    "buffer": lambda: {"rollout_buffer_kwargs": {}},
    "schedule": lambda: {"learning_rate": LinearSchedule(0.1, 0.0, 1.0)},
}


@pytest.mark.parametrize("name", POLICIES)
@contract()
def test_arguments_come_back(algorithm: Algorithm, name: str) -> Any:
    """A model with these arguments, loaded, acts the same and learns on."""
    model = trained(algorithm, **POLICIES[name]())
    loaded = algorithm.load(saved(model), env=envs())
    same = np.array_equal(acts(loaded), acts(model))
    learn(loaded)
    return same, loaded.policy_kwargs == model.policy_kwargs, loaded.use_sde


@contract()
def test_function_that_this_process_saved_comes_back(algorithm: Algorithm) -> Any:
    """A schedule that is a function, whose code is in the file, comes back in the process that saved it."""
    loaded = algorithm.load(saved(make(algorithm, learning_rate=lambda progress: 0.1 * progress)))
    return loaded.learning_rate(0.5), loaded.lr_schedule(0.5)


@contract(documented=["UnsafeFileError", True, True, True], contrib=["opened", True, True, True])
def test_code_in_a_file_runs_only_when_it_is_trusted(algorithm: Algorithm) -> Any:
    """
    In the file of another process, such a function is refused, since files are read as data, unless the caller gives one
    (``learning_rate=``, ``custom_objects``), lists it (``safe_globals``), or passes ``trust=True``.
    """

    def halved(progress: float) -> float:
        return 0.1 * progress

    file = saved(make(algorithm, learning_rate=halved))
    forget_what_was_saved()
    try:
        algorithm.load(file)
        outcome = "opened"
    except ValueError as error:
        outcome = type(error).__name__
    ways: list[dict[str, Any]] = [{"custom_objects": {"learning_rate": halved}}]
    ways += [{}, {}] if algorithm is sb3_contrib.TRPO else [{"safe_globals": [halved]}, {"trust": True}]
    return [outcome, *(algorithm.load(file, **way).learning_rate(0.5) == 0.05 for way in ways)]


@contract()
def test_hyperparameters_come_back(algorithm: Algorithm) -> Any:
    """Every argument of the constructor is what it was."""
    model = make(algorithm, gamma=0.7, gae_lambda=0.8, target_kl=0.02, n_critic_updates=3, normalize_advantage=False)
    loaded = algorithm.load(saved(model))
    names = ("gamma", "gae_lambda", "target_kl", "n_critic_updates", "normalize_advantage", "batch_size", "n_steps", "seed")
    return [getattr(loaded, name) for name in names]


@contract()
def test_loaded_model_without_environment(algorithm: Algorithm) -> Any:
    """``load`` without ``env``: predicts; ``get_env`` is None; ``set_env`` lets it learn."""
    loaded = algorithm.load(saved(make(algorithm)))
    assert loaded.get_env() is None
    loaded.set_env(envs())
    learn(loaded)
    return acts(loaded).shape


@contract()
def test_vec_normalize_is_loaded(algorithm: Algorithm) -> Any:
    """Statistics that ``VecNormalize.save`` wrote, by SB3's ``load`` and by ours: the same observations."""
    env = VecNormalize(envs())
    make(algorithm, env).learn(64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vecnormalize.pkl"
        env.save(str(path))
        loaded = [VecNormalize.load(str(path), envs()), load_vec_normalize(path, envs())]
    for one in loaded:
        one.training = False
    return np.array_equal(loaded[0].reset(), loaded[1].reset()), loaded[1].obs_rms.mean.shape


def test_trpo_is_the_one_that_opens_files_of_sb3_contrib() -> None:
    """And its own files say what they are."""
    assert type(TRPO.load(saved(make(sb3_contrib.TRPO)))) is TRPO


@contract(without={VineTRPO: OTHER_SAMPLE})
def test_buffer_can_be_saved_on_demand(algorithm: Algorithm) -> Any:
    """``save(include=["rollout_buffer"])`` brings its arrays along."""
    data, _, _ = load_from_zip_file(saved(trained(algorithm), include=["rollout_buffer"]))
    assert data is not None
    return data["rollout_buffer"].observations.shape, data["rollout_buffer"].full
