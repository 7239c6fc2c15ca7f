"""The number of threads is lowered for small work, and put back."""

from collections.abc import Iterator

import pytest
import torch as th

from sb3_trpo_plus import TRPO
from sb3_trpo_plus.algorithms.threads import PER_THREAD, at_most_useful_threads
from sb3_trpo_plus.critic import fit
from tests.conftest import collect, random_env


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = th.get_num_threads()
    th.set_num_threads(4)
    yield
    th.set_num_threads(before)


@pytest.mark.parametrize(
    ("multiplications", "threads"), [(0, 1), (PER_THREAD, 1), (2 * PER_THREAD, 2), (3.5 * PER_THREAD, 3), (99 * PER_THREAD, 4)]
)
def test_threads_follow_the_work_up_to_the_users_number(multiplications: float, threads: int) -> None:
    with at_most_useful_threads(int(multiplications)):
        assert th.get_num_threads() == threads
    assert th.get_num_threads() == 4


def test_threads_are_put_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), at_most_useful_threads(0):
        raise ZeroDivisionError
    assert th.get_num_threads() == 4


def test_small_critics_are_fitted_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    fit_mlp = fit._fit_mlp
    monkeypatch.setattr(fit, "_fit_mlp", lambda *args: seen.append(th.get_num_threads()) or fit_mlp(*args))  # type: ignore[func-returns-value]
    collect(TRPO("MlpPolicy", random_env(), n_steps=64, batch_size=64, seed=0)).train()
    assert seen == [1]
    assert th.get_num_threads() == 4
