"""The family: each member is its siblings' limit where it should be, and holds the promises of them all."""

import copy
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.utils import LinearSchedule

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO
from sb3_trpo_plus.policies.distributions import action_distribution
from tests.algorithms.members import MEMBERS, actor_of, make
from tests.conftest import DISTRIBUTIONS, collect, parameters_of, random_env, read_log


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_learns_with_every_distribution(member: str, name: str) -> None:
    model = make(member, name)
    before = actor_of(model)
    model.learn(128)
    assert not th.equal(actor_of(model), before)
    assert all(th.isfinite(value).all() for value in parameters_of(model).values())


class RewardedImages(FakeImageEnv):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return observation, float(action), *rest


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_takes_images_and_dicts(member: str) -> None:
    algorithm, own = MEMBERS[member]
    images = RewardedImages(screen_height=36, screen_width=36, discrete=True)
    small = {"n_steps": 32, "batch_size": 32, "n_critic_updates": 1, "seed": 0, **own}
    for policy, env in (("CnnPolicy", images), ("MultiInputPolicy", SimpleMultiObsEnv(random_start=True))):
        options = {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 8}}} if policy == "CnnPolicy" else {}
        model: Any = algorithm(policy, env, **{**small, **options})
        before = parameters_of(model)
        model.learn(32)
        assert any(not th.equal(value, before[name]) for name, value in parameters_of(model).items())


@pytest.mark.parametrize("member", MEMBERS)
def test_saved_member_goes_on_as_the_one_that_was_not(member: str, tmp_path: Path) -> None:
    model = make(member).learn(64)
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", env=random_env("box"))
    observations = th.randn(5, 4).numpy()
    assert np.array_equal(
        model.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )
    own = {name: getattr(model, name) for name in MEMBERS[member][1]}
    assert {name: getattr(loaded, name) for name in own} == own
    if isinstance(model, PPOPenalty):
        assert loaded.penalty_coef == model.penalty_coef
    for one in (model, loaded):
        one.set_env(random_env("box"))
        one.set_random_seed(1)
        one.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == model.num_timesteps
    ended = parameters_of(loaded)
    assert all(th.equal(value, ended[name]) for name, value in parameters_of(model).items())


TELLING = {"trpo": "line_search_max_iter", "npg": "step_size", "vine": "n_rollout_states", "adaptive": "penalty"}


@pytest.mark.parametrize("loads", [TRPO, NPG, VineTRPO, PPOPenalty])
@pytest.mark.parametrize("saved", TELLING)
def test_file_is_opened_by_its_own_member_and_refused_by_the_others(saved: str, loads: Any, tmp_path: Path) -> None:
    make(saved).save(tmp_path / "model.zip")
    own = MEMBERS[saved][0]
    if loads is own:
        assert type(loads.load(tmp_path / "model.zip")) is own
        return
    words = f"was saved by another algorithm, {own.__name__}, {loads.__name__} can't load it: it has a {TELLING[saved]}$"
    with pytest.raises(ValueError, match=words):
        loads.load(tmp_path / "model.zip")


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("part", ["rewards", "observations", "advantages"])
def test_rollout_that_is_not_finite_changes_nothing(part: str, member: str) -> None:
    model = collect(make(member))
    getattr(model.rollout_buffer, part)[3] = math.nan
    before, optimizer = parameters_of(model), str(model.policy.optimizer.state_dict())
    with pytest.warns(UserWarning, match=f"the rollout's {part} are not all finite"):
        model.train()
    assert all(th.equal(value, before[name]) for name, value in parameters_of(model).items())
    assert str(model.policy.optimizer.state_dict()) == optimizer


@pytest.mark.parametrize(
    ("member", "arguments", "words"),
    [
        ("empirical", {"fisher": "exact"}, "fisher must be 'gauss_newton' or 'empirical', but it is 'exact'"),
        ("max", {"kl_constraint": None}, "kl_constraint must be 'mean' or 'max', but it is None"),
        ("npg", {"step_size": 0.0}, "step_size must be a positive number or None, but it is 0.0"),
        ("npg", {"step_size": math.nan}, "step_size must be a positive number or None, but it is nan"),
        ("npg", {"cg_damping": -1}, "cg_damping must be a number of at least 0, but it is -1"),
        ("empirical", {"log_improvement_bound": True, "gamma": 1.0}, "log_improvement_bound needs gamma below 1"),
        ("dual", {"penalty": "clip"}, "penalty must be 'adaptive' or 'dual', but it is 'clip'"),
        ("dual", {"penalty_coef": -1.0}, "penalty_coef must be a number of at least 0, but it is -1.0"),
        ("adaptive", {"penalty_coef": 0.0}, "penalty_coef must be positive for penalty='adaptive'"),
        ("dual", {"dual_learning_rate": 0}, "dual_learning_rate must be a positive number, but it is 0"),
        ("dual", {"n_epochs": 0}, "n_epochs must be an integer of at least 1, but it is 0"),
        ("adaptive", {"max_grad_norm": 0}, "max_grad_norm must be a positive number"),
        ("vine", {"n_rollout_states": 65}, r"n_rollout_states must be at most n_steps \* n_envs = 64 \* 1"),
        ("vine", {"n_rollout_states": 1, "n_actions": 1}, "normalize_advantage needs at least 2 branches"),
        ("vine", {"n_actions": 0}, "n_actions must be an integer of at least 1 or None, but it is 0"),
        ("vine", {"rollout_length": 2.5}, "rollout_length must be an integer of at least 1 or None, but it is 2.5"),
        ("vine", {"proposal": "greedy"}, "proposal must be 'policy' or 'uniform', but it is 'greedy'"),
        *(
            (member, {"gae_lambda": value}, f"gae_lambda must be a number from 0 to 1, but it is {value}")
            for member in ("trpo", "npg", "adaptive", "vine")
            for value in (-0.1, 1.1, math.nan)
        ),
    ],
)
def test_bad_arguments_are_named(member: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(member, **arguments)


@pytest.mark.parametrize("member", ["adaptive", "npg", "empirical"])
def test_equal_advantages_leave_the_policy_as_it_is(member: str) -> None:
    model = collect(make(member)).learn(64)
    collect(model)
    model.rollout_buffer.advantages[:] = 3.0
    before = actor_of(model)
    with pytest.warns(UserWarning, match="all advantages of the rollout are equal"):
        model._improve_policy()
    assert th.equal(actor_of(model), before)


def test_logged_numbers_are_the_updates(tmp_path: Path) -> None:
    for member, expected in {
        "npg": {"step_size", "kl_mean", "kl_max", "cg_iterations", "policy_objective", "entropy", "std"},
        "dual": {"penalty_coef", "kl_mean", "kl_max", "policy_objective", "entropy", "std", "value_loss"},
    }.items():
        model = make(member)
        model.set_logger(configure(str(tmp_path / member), ["csv"]))
        model.learn(64)
        model.logger.dump()
        logged = read_log(tmp_path / member)
        assert expected <= logged.keys()
        assert not [tag for tag in logged if "line_search" in tag]
        if member == "dual":
            assert float(logged["penalty_coef"]) == pytest.approx(model.penalty_coef)


def test_errors_of_the_users_own_policy_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for member in ("adaptive", "empirical"):
        model = collect(make(member))
        before, calls = actor_of(model), []
        plain = model.policy.get_distribution

        def later(observations: Any, plain: Any = plain, calls: list[int] = calls) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise ValueError("mine")
            return plain(observations)

        monkeypatch.setattr(model.policy, "get_distribution", later)
        with pytest.raises(ValueError, match=r"^mine$"):
            model.train()
        assert th.equal(actor_of(model), before)


class Noted(BaseCallback):
    """Notes what each update but the last logs under some tags."""

    def __init__(self, *tags: str) -> None:
        super().__init__()
        self.tags = [f"train/{tag}" for tag in tags]
        self.seen: list[list[float]] = []

    def _on_rollout_start(self) -> None:
        values = self.logger.name_to_value
        if self.tags[0] in values:
            self.seen.append([values[tag] for tag in self.tags])

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("member", ["npg", "empirical", "adaptive", "vine with a critic"])
def test_limit_follows_its_schedule(member: str, tmp_path: Path) -> None:
    model = make(member, target_kl=LinearSchedule(0.04, 0.0, 1.0))
    assert model.kl_limit == 0.04
    limits = Noted("target_kl", "kl_mean")
    model.learn(64 * 20, limits, log_interval=1000)
    expected = [0.04 * max(0.0, 1 - steps / 1280) for steps in range(64, 1280, 64)]
    if "vine" not in member:
        assert [limit for limit, _ in limits.seen] == pytest.approx(expected)
    if member == "empirical":
        assert all(kl <= limit for limit, kl in limits.seen)
        assert max(kl for limit, kl in limits.seen if limit > 0.02) > 0.02
    assert model.kl_limit == 0
    model.save(tmp_path / "model.zip")
    assert type(model).load(tmp_path / "model.zip").target_kl(0.5) == 0.02


@pytest.mark.parametrize("member", ["npg", "empirical", "adaptive", "vine with a critic"])
def test_entropy_coefficient_follows_its_schedule(member: str, tmp_path: Path) -> None:
    with_entropy, without = (collect(make(member, ent_coef=schedule)) for schedule in (LinearSchedule(0.4, 0.0, 1.0), 0.0))
    with_entropy.set_parameters(without.get_parameters())
    sample = without._sample()
    distribution = action_distribution(without.policy, sample.observations)
    entropy = distribution.distribution.entropy().sum(-1).mean().item()
    for remaining in (1.0, 0.25, 0.0):
        with_entropy._current_progress_remaining = remaining
        gained, plain = (model._surrogate(distribution, sample).item() for model in (with_entropy, without))
        assert gained - plain == pytest.approx(0.4 * remaining * entropy, abs=1e-6)
    with_entropy._current_progress_remaining = 0.25
    with_entropy.train()
    assert with_entropy.logger.name_to_value["train/ent_coef"] == pytest.approx(0.1)
    with_entropy.save(tmp_path / "model.zip")
    assert type(with_entropy).load(tmp_path / "model.zip").ent_coef(0.5) == 0.2


@pytest.mark.parametrize("member", ["npg", "empirical", "adaptive", "vine"])
def test_discount_follows_its_schedule(member: str) -> None:
    constant, function = (make(member, gamma=gamma).learn(192) for gamma in (0.6, lambda progress: 0.6))
    assert th.equal(actor_of(constant), actor_of(function))
    noted = Noted("gamma")
    falling = make(member, gamma=LinearSchedule(0.9, 0.6, 1.0)).learn(64 * 3, noted, log_interval=1000)
    assert not th.equal(actor_of(falling), actor_of(function))
    if member != "vine":
        assert [gamma for (gamma,) in noted.seen] == pytest.approx([0.9, 0.8])
        assert falling.rollout_buffer.gamma == pytest.approx(0.7)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_discount_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match=rf"gamma must be a number from 0 to 1, but it is {value}"):
        make(gamma=value)
    with pytest.raises(ValueError, match=rf"gamma at progress_remaining=1 must be a number from 0 to 1, but it is {value}"):
        make(gamma=lambda progress: value).learn(64)


@pytest.mark.parametrize("value", [-0.01, math.nan, math.inf])
@pytest.mark.parametrize("name", ["target_kl", "ent_coef"])
@pytest.mark.parametrize("member", ["npg", "empirical", "adaptive"])
def test_schedule_out_of_range_changes_nothing(member: str, name: str, value: float) -> None:
    now = [getattr(make(member), name)]
    model = collect(make(member, **{name: lambda progress: now[0]}))
    now[0] = value
    before, state = parameters_of(model), copy.deepcopy(model.policy.optimizer.state_dict())
    with pytest.raises(ValueError, match=rf"{name} at progress_remaining=1 must be a number of at least 0, but it is {value}"):
        model.train()
    assert all(th.equal(value, before[name]) for name, value in parameters_of(model).items())
    assert model.policy.optimizer.state_dict() == state


@pytest.mark.parametrize("member", ["npg", "trpo", "adaptive", "vine"])
def test_discount_of_the_users_own_buffer_stays_unless_there_is_a_schedule(member: str) -> None:
    constant, falling = make(member, gamma=0.6), make(member, gamma=LinearSchedule(0.9, 0.6, 1.0))
    for model in (constant, falling):
        model.rollout_buffer.gamma = 0.5
        collect(model)
    assert constant.rollout_buffer.gamma == 0.5
    assert falling.rollout_buffer.gamma == 0.9
    constant.train()
    assert constant.logger.name_to_value["train/gamma"] == 0.5


@pytest.mark.parametrize(
    ("member", "arguments"),
    [("npg", {"cg_maxsteps": 3}), ("adaptive", {"clip_range": 0.2}), ("vine", {"sub_sampling_factor": 2})],
)
def test_unknown_argument_is_pythons_own_error(member: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"__init__.. got an unexpected keyword argument '{next(iter(arguments))}'"):
        make(member, **arguments)


def spoil(model: Any, cause: str) -> None:
    """Make the next training on the rollout that is there skip an update for this cause."""
    buffer = model.rollout_buffer
    if cause == "rollout_not_finite":
        buffer.rewards[3] = math.nan
    elif cause == "equal_advantages" and isinstance(model, VineTRPO):
        model._vine = replace(model._vine, advantages=th.zeros_like(model._vine.advantages))
    elif cause == "equal_advantages":
        buffer.advantages[:] = 3.0
    elif cause == "no_direction" or (isinstance(model, PPOPenalty) and cause == "policy_not_finite"):
        model._surrogate = lambda distribution, sample: math.nan * distribution.log_prob(sample.actions).mean()
    elif cause == "policy_not_finite":
        model.step_size = 1e38
    else:
        buffer.returns[:] = 1e30


def train_anew(model: Any, cause: str | None = None) -> list[str]:
    """One more rollout and a training on it, with an update that is skipped for this cause; what the warnings say."""
    collect(model)
    own = {name: value for name, value in vars(model).items() if name in ("_surrogate", "step_size")}
    if cause is not None:
        spoil(model, cause)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.train()
    vars(model).pop("_surrogate", None)
    vars(model).update(own)
    # NumPy has warnings of its own where returns of 1e30 are squared.
    return [str(warning.message) for warning in caught if warning.category is UserWarning]


def logged_by(model: Any) -> dict[str, Any]:
    return {tag: value for tag, value in model.logger.name_to_value.items() if tag.startswith("train/")}


def assert_numbers(logged: dict[str, Any]) -> None:
    assert logged
    assert {tag: value for tag, value in logged.items() if not isinstance(value, (int, float, np.number))} == {}


CAUSES = {
    "rollout_not_finite": "This update was skipped, nothing was changed: the rollout's rewards are not all finite",
    "equal_advantages": "This policy update was skipped, the policy stays as it was: all advantages of the rollout are equal",
    "no_direction": "This policy update was skipped, the policy stays as it was: the surrogate objective is not finite",
    "policy_not_finite": "This policy update was skipped, the policy stays as it was: ",
    "critic_fit": "The critic's fit stopped early: ",
}


def can_skip(member: str, cause: str) -> bool:
    algorithm = MEMBERS[member][0]
    if cause == "no_direction":
        return issubclass(algorithm, NPG)
    if cause == "policy_not_finite":
        # The line search refuses such steps as a matter of course.
        return not issubclass(algorithm, TRPO)
    return cause != "critic_fit" or member != "vine"


@pytest.mark.parametrize(
    ("member", "cause"), [(member, cause) for member in MEMBERS for cause in CAUSES if can_skip(member, cause)]
)
def test_skipped_updates_are_counted_and_told_as_long_as_they_go_on(member: str, cause: str) -> None:
    model, tag, said = make(member), f"train/skipped_{cause}", []
    train_anew(model)
    assert not [tag for tag in logged_by(model) if "skipped" in tag]
    for count in range(1, 6):
        said.append(train_anew(model, cause))
        logged = logged_by(model)
        assert logged[tag] == count
        assert_numbers(logged)
        if isinstance(model, TRPO) and cause != "critic_fit":
            assert logged["train/is_line_search_success"] == 0.0
    assert [len(words) for words in said] == [1, 1, 0, 1, 0]
    assert all(words[0].startswith(CAUSES[cause]) for words in said if words)
    assert "in a row" not in said[0][0]
    assert said[1][0].endswith(" (2 times in a row)")
    assert said[3][0].endswith(" (4 times in a row)")
    assert train_anew(model) == [], "an update in between"
    assert logged_by(model)[tag] == 5
    (again,) = train_anew(model, cause)
    assert "in a row" not in again
    assert {tag: value for tag, value in logged_by(model).items() if "skipped" in tag} == {tag: 6}


@pytest.mark.parametrize("member", MEMBERS)
def test_causes_of_skipped_updates_are_counted_apart(member: str) -> None:
    model = make(member)
    causes = [cause for cause in CAUSES if can_skip(member, cause)]
    for count in (1, 2):
        for cause in causes:
            (words,) = train_anew(model, cause)
            assert words.startswith(CAUSES[cause])
            assert "in a row" not in words
            assert logged_by(model)[f"train/skipped_{cause}"] == count
    assert_numbers(logged_by(model))
    skipped = {tag for tag in logged_by(model) if "skipped" in tag}
    assert skipped == {f"train/skipped_{cause}" for cause in causes}


@pytest.mark.parametrize("member", ["npg", "trpo", "adaptive", "vine with a critic"])
def test_skipped_updates_are_not_saved_with_the_model(member: str, tmp_path: Path) -> None:
    model = make(member)
    train_anew(model, "rollout_not_finite")
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", env=random_env("box"))
    train_anew(loaded)
    assert not [tag for tag in logged_by(loaded) if "skipped" in tag]
    (words,) = train_anew(loaded, "rollout_not_finite")
    assert "in a row" not in words
    assert logged_by(loaded)["train/skipped_rollout_not_finite"] == 1


class Recorder(Logger):
    """Keeps what is recorded, which a dump takes away."""

    def __init__(self) -> None:
        super().__init__(None, [])
        self.seen: list[tuple[str, Any]] = []

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        self.seen.append((key, value))
        super().record(key, value, exclude)


@pytest.mark.parametrize("name", ["box", "discrete", "gsde_squashed"])
@pytest.mark.parametrize("member", MEMBERS)
def test_nothing_but_numbers_is_logged(member: str, name: str) -> None:
    bound = {"log_improvement_bound": True} if issubclass(MEMBERS[member][0], NPG) else {}
    model = make(member, name, **bound)
    recorder = Recorder()
    model.set_logger(recorder)
    model.learn(192)
    seen = [(tag, value) for tag, value in recorder.seen if tag.startswith("train/")]
    assert len(seen) > 10
    for tag, value in seen:
        assert isinstance(value, (int, float, np.number)), (tag, value)


@pytest.mark.parametrize("value", [math.inf, math.nan, -1e-3])
@pytest.mark.parametrize("member", ["npg", "empirical", "adaptive", "vine with a critic"])
def test_rate_that_becomes_unusable_changes_nothing(member: str, value: float) -> None:
    now = [1e-3]
    model = make(member, learning_rate=lambda progress: now[0]).learn(64)
    collect(model)
    before, state = parameters_of(model), copy.deepcopy(model.policy.optimizer.state_dict())
    now[0] = value
    with pytest.raises(ValueError, match=rf"learning_rate at progress_remaining=\S+ must be .* at least 0, but it is {value}"):
        model.train()
    assert all(th.equal(value, before[name]) for name, value in parameters_of(model).items())
    assert str(model.policy.optimizer.state_dict()) == str(state)
    now[0] = 1e-3
    model.train()
    assert all(value.isfinite().all() for value in parameters_of(model).values())
