"""Skipped updates: counted by cause, and warned of at the first, second, fourth, eighth ... in a row."""

import warnings
from typing import Any

import pytest
from gymnasium import spaces

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.algorithms.skips import Skips
from tests.conftest import RandomEnv, collect, random_env


def warned(skips: Skips, causes: list[str]) -> list[str]:
    """The warnings of an update in which these are skipped."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        skips.begin_update()
        for cause in causes:
            skips.add(cause, f"{cause} was skipped")
    return [str(warning.message) for warning in caught]


def test_nothing_is_counted_at_first() -> None:
    assert Skips().counts == {}


def test_warnings_come_at_powers_of_two_in_a_row() -> None:
    skips = Skips()
    at = {n: warned(skips, ["step"]) for n in range(1, 34)}
    assert {n for n, messages in at.items() if messages} == {1, 2, 4, 8, 16, 32}
    assert at[1] == ["step was skipped"]
    assert at[32] == ["step was skipped (32 times in a row)"]
    assert skips.counts == {"step": 33}


def test_row_ends_with_an_update_that_was_not_skipped() -> None:
    skips = Skips()
    assert [len(warned(skips, ["step"])) for _ in range(3)] == [1, 1, 0]
    assert warned(skips, []) == []
    assert warned(skips, ["step"]) == ["step was skipped (4 times so far)"]
    assert warned(skips, ["step"]) == ["step was skipped (2 times in a row)"]
    assert skips.counts == {"step": 5}, "the count goes on"


def test_causes_have_rows_of_their_own() -> None:
    skips = Skips()
    assert warned(skips, ["step", "fit"]) == ["step was skipped", "fit was skipped"]
    assert warned(skips, ["fit"]) == ["fit was skipped (2 times in a row)"]
    assert warned(skips, ["step", "fit"]) == ["step was skipped (2 times so far)"]
    assert warned(skips, ["fit"]) == ["fit was skipped (4 times in a row)"]
    assert skips.counts == {"step": 2, "fit": 4}


def test_cause_that_occurs_twice_in_an_update_is_counted_twice() -> None:
    skips = Skips()
    assert warned(skips, ["fit", "fit", "fit"]) == ["fit was skipped", "fit was skipped (2 times in a row)"]
    assert skips.counts == {"fit": 3}


def test_each_warning_is_shown_by_pythons_default_filter() -> None:
    """It shows a text once at each place: in a row, and at the beginnings of several, they differ."""
    skips = Skips()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for in_a_row in (4, 1, 1):
            for _ in range(in_a_row):
                skips.begin_update()
                skips.add("step", "it was skipped")
            skips.begin_update()
            skips.begin_update()
    assert len({str(warning.message) for warning in caught}) == len(caught) == 5


def test_what_goes_on_is_told_after_ten_in_a_row_and_more_rarely_then() -> None:
    skips, at = Skips(), []
    for n in [*range(1, 100), 0, *range(1, 12)]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            skips.goes_on("stall", n > 0, "It stands still")
        at += [(n, str(warning.message)) for warning in caught]
    assert at == [(n, f"It stands still ({n} updates in a row)") for n in (10, 20, 40, 80, 10)]
    assert skips.counts == {}, "nothing was skipped"


def stalled(n_updates: int, env: Any, **kwargs: Any) -> tuple[Any, list[str]]:
    """A model after some updates, and what was warned of."""
    model: Any = TRPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0, n_critic_updates=1, device="cpu", **kwargs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        model.learn(32 * n_updates)
    return model, [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]


def test_policy_that_never_moves_is_told_once_with_the_reason() -> None:
    model, messages = stalled(12, random_env(), policy_kwargs={"log_std_init": -20})
    assert not model.last_step.accepted
    (message,) = messages
    assert message.startswith("No step was taken: no step accepted (")
    assert "so small that rounding alone changes it by more than target_kl: raise log_std_init" in message
    assert message.endswith("(10 updates in a row)")


def test_damping_that_makes_steps_short_is_told_once_with_its_share() -> None:
    """The KL is a mean over the 1,000 actions, and so is the Fisher matrix; the damping is not."""
    env = RandomEnv(spaces.Box(-2.0, 2.0, (4,)), spaces.Box(-1.0, 1.0, (1000,)))
    model, messages = stalled(12, env)
    (message,) = messages
    assert "of s'(F + damping I)s is damping: with a lower cg_damping than 0.1 steps are longer" in message
    assert message.endswith("(10 updates in a row)")
    logged, step = model.logger.name_to_value, model.last_step
    assert step.accepted
    assert logged["train/kl_used"] == step.mean_kl / 0.01 < 0.1
    assert logged["train/damping_share"] == step.damping_share > 0.9
    lighter, messages = stalled(12, env, cg_damping=1e-5)
    assert messages == []
    assert lighter.logger.name_to_value["train/kl_used"] > 0.5


def test_training_that_goes_well_is_told_nothing_of() -> None:
    assert stalled(12, random_env())[1] == []


def test_schedule_that_ends_at_no_step_is_no_stall() -> None:
    model, messages = stalled(12, random_env(), target_kl=lambda progress: 0.01 if progress == 1 else 0.0)
    assert messages == []
    assert model.logger.name_to_value["train/kl_used"] == 0


def test_models_count_their_own_and_log_it() -> None:
    models: list[Any] = [TRPO("MlpPolicy", random_env(), n_steps=32, batch_size=32, seed=0) for _ in range(2)]
    for model in models:
        collect(model)
    models[0].rollout_buffer.advantages[:] = 1.0
    with pytest.warns(UserWarning, match="all advantages of the rollout are equal"):
        models[0].train()
    models[1].train()
    assert models[0]._skips.counts == {"equal_advantages": 1}
    assert models[0].logger.name_to_value["train/skipped_equal_advantages"] == 1
    assert models[1]._skips.counts == {}
    assert not any(name.startswith("train/skipped") for name in models[1].logger.name_to_value)


def test_counts_are_of_this_process_alone(tmp_path: Any) -> None:
    model: Any = collect(TRPO("MlpPolicy", random_env(), n_steps=32, batch_size=32, seed=0))
    model.rollout_buffer.advantages[:] = 1.0
    with pytest.warns(UserWarning, match="are equal"):
        model.train()
    model.save(tmp_path / "model.zip")
    loaded: Any = TRPO.load(tmp_path / "model.zip", env=random_env())
    assert loaded._skips.counts == {}
