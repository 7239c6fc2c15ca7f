"""Pictures show the update as it was, and leave the model as it is."""

import gc
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo_plus import NPG
from sb3_trpo_plus.plots import plot_trust_region
from tests.algorithms.members import make
from tests.conftest import collect, parameters_of


@pytest.mark.parametrize("member", ["empirical", "max", "npg", "vine"])
def test_trust_region_is_drawn_from_the_last_update(member: str) -> None:
    model = make(member, target_kl=0.05)
    with pytest.raises(ValueError, match=r"call learn\(\) first"):
        plot_trust_region(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.learn(128)
    before, state, report = parameters_of(model), np.random.get_state()[1].copy(), model.last_step
    figure = plot_trust_region(model)
    assert all(th.equal(value, before[name]) for name, value in parameters_of(model).items())
    assert np.array_equal(np.random.get_state()[1], state)
    objective, constraint = figure.axes
    lines: dict[str, Callable[[float], float]] = {}
    for axes in (objective, constraint):
        for line in axes.lines:
            x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
            lines[f"{axes.get_title()}: {line.get_label()}"] = lambda at, x=x, y=y: float(np.interp(at, x, y))
    size, candidate = report.tried[-1]
    # The true curves pass through the candidates that the search has seen.
    surrogate, kl = lines["Objective: surrogate"], lines[f"Constraint: {'maximum' if member == 'max' else 'mean'} KL"]
    assert surrogate(size) == pytest.approx(candidate.surrogate - report.surrogate_old, rel=0.05, abs=1e-5)
    assert kl(size) == pytest.approx(candidate.max_kl if member == "max" else candidate.mean_kl, rel=0.05)
    assert surrogate(0) == pytest.approx(0, abs=1e-6)
    assert kl(0) == pytest.approx(0, abs=1e-6)
    assert lines["Objective: linear model"](size) == pytest.approx(size * report.slope, rel=1e-6)
    if report.accepted:
        assert lines["Objective: accepted"](size) == pytest.approx(candidate.surrogate - report.surrogate_old)


GONE = "The rollout of the last policy update is gone: draw it when learn.. has returned, before the next one"


def test_a_picture_is_refused_after_a_training_that_a_callback_ended() -> None:
    model = make("empirical", sub_sampling_factor=3).learn(64)
    assert plot_trust_region(model).axes

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return False

    model.learn(64, Stop(), reset_num_timesteps=False)
    with pytest.raises(ValueError, match=GONE):
        plot_trust_region(model)


class Draws(BaseCallback):
    """Tries to draw at every call but those of the first rollout, and notes where it could, and the errors."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: list[tuple[str, str]] = []

    def draw(self, where: str) -> None:
        if self.model.last_step is None:
            return
        try:
            plot_trust_region(self.model)
            outcome = "drawn"
        except Exception as error:
            outcome = repr(error)
        self.outcomes.append((where, outcome))

    def _on_rollout_start(self) -> None:
        self.draw("start")

    def _on_step(self) -> bool:
        self.draw("branch" if self.locals.get("branching") else "step")
        return True

    def _on_rollout_end(self) -> None:
        self.draw("end")


@pytest.mark.parametrize("member", ["trpo", "npg", "vine"])
def test_a_picture_is_refused_once_a_new_rollout_has_begun(member: str) -> None:
    model, draws = make(member, n_steps=16, batch_size=16), Draws()
    branch_steps = 16 * 4 * 5 if member == "vine" else 0
    model.learn(16 + branch_steps + 16, draws)
    places = ["start", *["step"] * 16, "end"]
    assert [where for where, _ in draws.outcomes][: len(places)] == places
    assert ("branch" in dict(draws.outcomes)) == (member == "vine")
    # Full again, the buffer has another rollout than the update's.
    assert {outcome for _, outcome in draws.outcomes if not re.match(f"ValueError.*{GONE}", outcome)} == set()
    assert plot_trust_region(model).axes
    collect(model)
    with pytest.raises(ValueError, match=GONE):
        plot_trust_region(model)
    model.train()
    assert plot_trust_region(model).axes


@pytest.mark.parametrize("member", ["adaptive", "dual"])
def test_updates_of_ppo_penalty_have_no_direction_to_draw(member: str) -> None:
    model = make(member).learn(64)
    with pytest.raises(TypeError, match=r"those of PPOPenalty have none: give it a TRPO, NPG or VineTRPO"):
        plot_trust_region(model)


def test_a_loaded_model_has_no_update_to_draw(tmp_path: Path) -> None:
    make("npg").learn(64).save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"call learn\(\) first"):
        plot_trust_region(NPG.load(tmp_path / "model.zip"))


@pytest.mark.parametrize("name", ["box", "discrete", "gsde_squashed"])
@pytest.mark.parametrize("member", ["trpo", "npg", "vine"])
def test_training_goes_on_with_the_same_random_numbers_after_a_picture(member: str, name: str) -> None:
    ends = []
    for draws in (True, False):
        model = make(member, name, sub_sampling_factor=3) if member != "vine" else make(member, name)
        model.learn(128)
        was_training, gradients = model.policy.training, [parameter.grad for parameter in model.policy.parameters()]
        optimizer = str(model.policy.optimizer.state_dict())
        if draws:
            # Its rollout is still there for another one.
            for _ in range(2):
                plot_trust_region(model)
        assert model.policy.training == was_training
        assert [parameter.grad for parameter in model.policy.parameters()] == gradients
        assert str(model.policy.optimizer.state_dict()) == optimizer
        model.learn(128, reset_num_timesteps=False)
        state = np.random.get_state()
        ends.append((parameters_of(model), state[1], state[2], th.get_rng_state(), random.getstate(), model.num_timesteps))
    with_picture, without = ends
    assert all(th.equal(value, without[0][name]) for name, value in with_picture[0].items())
    assert np.array_equal(with_picture[1], without[1])
    assert th.equal(with_picture[3], without[3])
    assert (with_picture[2], *with_picture[4:]) == (without[2], *without[4:])


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("member", ["trpo", "npg", "vine", "vine with a critic", "adaptive"])
def test_no_tensor_of_a_rollout_stays_alive(member: str, drawn: bool) -> None:
    """What the picture needs is drawn again from the buffer. Of the vine its branches stay, which no buffer has."""
    n = 1237
    with warnings.catch_warnings():
        # Of the batch size, which does not divide a prime.
        warnings.simplefilter("ignore")
        model = make(member, n_steps=n, n_critic_updates=1)
    model.learn(n)
    if drawn and member != "adaptive":
        plot_trust_region(model)
    gc.collect()
    alive = [tuple(thing.shape) for thing in gc.get_objects() if isinstance(thing, th.Tensor) and n in thing.shape]
    assert alive == []


def test_trust_region_shows_a_step_that_overflowed() -> None:
    model = make("empirical", target_kl=1e30).learn(64)
    curve = plot_trust_region(model).axes[1].lines[0].get_ydata()
    assert np.isnan(curve).any()
    assert curve[0] == pytest.approx(0.0, abs=1e-6)


def test_trust_region_of_a_skipped_update_is_not_that_of_the_one_before() -> None:
    model = make("empirical").learn(64)
    collect(model).rollout_buffer.rewards[0] = np.nan
    with pytest.warns(UserWarning, match="rewards"):
        model.train()
    with pytest.raises(ValueError, match="no policy update"):
        plot_trust_region(model)


def test_trust_region_without_a_direction_says_so() -> None:
    model = collect(make("npg"))
    model.rollout_buffer.advantages[:] = 1.0
    with pytest.warns(UserWarning, match="equal"):
        model.train()
    with pytest.raises(ValueError, match="no search direction, there is nothing to draw: the gradient"):
        plot_trust_region(model)
