"""The logger: numbers under train/, and every way in which SB3 writes them."""

import csv
import io
import json
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger, configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_trpo_plus import NPG, PPOPenalty, VineTRPO
from tests.contract.programs import MORE_STEPS, Algorithm, Episodes, assert_at_least, contract, envs, learn, make

WITHOUT_LINE_SEARCH = {NPG: "it has no line search", PPOPenalty: "it has no line search"}
OF_CONTRIB = {
    "train/policy_objective", "train/value_loss", "train/kl_divergence_loss", "train/explained_variance",
    "train/is_line_search_success", "train/std", "train/n_updates", "train/learning_rate",
}  # fmt: skip


class Writer(KVWriter):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        assert set(key_values) == set(key_excluded)
        self.written.append({**key_values, "step": step})

    def close(self) -> None:
        pass


def with_critic(algorithm: Algorithm) -> dict[str, Any]:
    return {"bootstrap": True} if issubclass(algorithm, VineTRPO) else {}


def written(algorithm: Algorithm, n_rollouts: int = 2, log_interval: int = 1, **kwargs: Any) -> list[dict[str, Any]]:
    """What a writer of the user's is given; the last dump is ours, of the last update."""
    model, writer = make(algorithm, **{**with_critic(algorithm), **kwargs}), Writer()
    model.set_logger(Logger(None, [writer]))
    model.learn(n_rollouts * 64, log_interval=log_interval)
    model.logger.dump(0)
    return writer.written


@pytest.mark.parametrize("space", ["box", "discrete"])
@contract()
def test_everything_logged_is_a_number(algorithm: Algorithm, space: str) -> Any:
    """``float(value)`` of every value that reaches a writer, as MLflow and others do."""
    dumps = written(algorithm, env=envs(space))
    words = [name for dump in dumps for name, value in dump.items() if not _is_number(value)]
    return words, any(name.startswith("train/") for dump in dumps for name in dump)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str)


@contract()
def test_everything_recorded_is_a_number(algorithm: Algorithm) -> Any:
    """``model.logger.name_to_value`` after the update, as callbacks and imitation read it."""
    model = make(algorithm)
    learn(model)
    recorded = {name: value for name, value in model.logger.name_to_value.items() if name.startswith("train/")}
    return [name for name, value in recorded.items() if not _is_number(value)], "train/n_updates" in recorded


@contract()
def test_everything_recorded_of_a_skipped_update_is_a_number(algorithm: Algorithm) -> Any:
    """The same where no step can be taken, since the advantages are all 0."""
    model = make(algorithm, env=envs(env_class=Still), n_critic_updates=1, normalize_advantage=False)
    for parameter in model.policy.value_net.parameters():
        parameter.data.zero_()
    learn(model)
    recorded = {name: value for name, value in model.logger.name_to_value.items() if name.startswith("train/")}
    return [name for name, value in recorded.items() if not _is_number(value)], len(recorded) > 0


class Still(Episodes):
    """An environment in which nothing is ever rewarded."""

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, 0.0, *rest


@contract(compare=assert_at_least, without={**WITHOUT_LINE_SEARCH})
def test_tags_of_trpo(algorithm: Algorithm) -> Any:
    """All tags of sb3-contrib, under their names."""
    found = {name for dump in written(algorithm) for name in dump} & OF_CONTRIB
    assert found == OF_CONTRIB
    return found


@contract(compare=assert_at_least)
def test_tags_of_all(algorithm: Algorithm) -> Any:
    """Those that have nothing to do with a line search."""
    dumped = {name for dump in written(algorithm) for name in dump}
    return {name for name in dumped if name not in ("train/kl_divergence_loss", "train/is_line_search_success")}


@contract(without={VineTRPO: MORE_STEPS})
def test_statistics_of_the_episodes(algorithm: Algorithm) -> Any:
    """``rollout/ep_rew_mean``, ``ep_len_mean``, ``success_rate``, ``time/total_timesteps`` of the first rollout."""
    first = written(algorithm)[0]
    tags = ("rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/success_rate", "time/total_timesteps", "time/iterations")
    return [float(first[tag]) for tag in tags]


@contract()
def test_statistics_leave_branches_out(algorithm: Algorithm) -> Any:
    """Episodes in ``ep_info_buffer`` at the end of the first rollout, and after it."""
    model = make(algorithm)
    at_end = learn(model, rollout_end=lambda it: [[info["r"], info["l"]] for info in it.model.ep_info_buffer])
    return at_end, [[info["r"], info["l"]] for info in model.ep_info_buffer], list(model.ep_success_buffer)


@contract()
def test_csv(algorithm: Algorithm) -> Any:
    """``configure(folder, ["csv"])``: every cell under train/ is a number or empty."""
    with tempfile.TemporaryDirectory() as folder:
        model = make(algorithm)
        model.set_logger(configure(folder, ["csv"]))
        model.learn(640)
        model.logger.close()
        rows = list(csv.DictReader((Path(folder) / "progress.csv").open()))
    cells = [cell for row in rows for name, cell in row.items() if name.startswith("train/") and cell]
    return sum(not _is_number(float(cell)) for cell in cells), len(rows) >= 2, len(cells) > 2


@contract()
def test_json(algorithm: Algorithm) -> Any:
    """``configure(folder, ["json"])``: every line is read by ``json``, with numbers under train/."""
    with tempfile.TemporaryDirectory() as folder:
        model = make(algorithm)
        model.set_logger(configure(folder, ["json"]))
        model.learn(640)
        model.logger.close()
        lines = [json.loads(line) for line in (Path(folder) / "progress.json").read_text().splitlines()]
    values = [value for line in lines for name, value in line.items() if name.startswith("train/")]
    return [value for value in values if not isinstance(value, (int, float))], len(values) > 3


@contract()
def test_tensorboard(algorithm: Algorithm) -> Any:
    """``tensorboard_log`` and ``tb_log_name``: one folder a run, with the scalars."""
    with tempfile.TemporaryDirectory() as folder:
        model = make(algorithm, tensorboard_log=folder, **with_critic(algorithm))
        model.learn(640, tb_log_name="mine")
        model.learn(64, tb_log_name="mine")
        model.learn(64, tb_log_name="mine", reset_num_timesteps=False)
        events = EventAccumulator(str(Path(folder) / "mine_1")).Reload()
        tags = {"train/value_loss", "train/explained_variance", "train/learning_rate", "rollout/ep_rew_mean", "time/fps"}
        found = sorted(tags & set(events.Tags()["scalars"]))
        return sorted(path.name for path in Path(folder).iterdir()), found, "train/n_updates" in events.Tags()["scalars"]


@contract()
def test_tensorboard_folder_is_named_after_the_class(algorithm: Algorithm) -> Any:
    """Without ``tb_log_name``: ``TRPO_1`` for TRPO."""
    with tempfile.TemporaryDirectory() as folder:
        make(algorithm, tensorboard_log=folder).learn(64)
        return [path.name == f"{algorithm.__name__}_1" for path in Path(folder).iterdir()]


@contract()
def test_standard_output(algorithm: Algorithm) -> Any:
    """``verbose=1`` prints the table; ``verbose=0`` nothing."""
    printed = []
    for verbose in (0, 1):
        with redirect_stdout(io.StringIO()) as out:
            make(algorithm, verbose=verbose).learn(64)
        printed.append(out.getvalue())
    return printed[0], [word in printed[1] for word in ("Using cpu device", "ep_rew_mean", "total_timesteps")]


@contract()
def test_table_has_the_update(algorithm: Algorithm) -> Any:
    """A ``HumanOutputFormat`` of the user's has the numbers of the update, none cut off so that two become one."""
    out = io.StringIO()
    model = make(algorithm)
    model.set_logger(Logger(None, [HumanOutputFormat(out)]))
    learn(model)
    model.logger.dump(0)
    return [word in out.getvalue() for word in ("n_updates", "learning_rate", "train/")]


@contract(without={VineTRPO: MORE_STEPS})
def test_log_interval(algorithm: Algorithm) -> Any:
    """One dump every third rollout; the step is the number of timesteps."""
    return [dump["step"] for dump in written(algorithm, 7, log_interval=3)]


@contract(without={VineTRPO: MORE_STEPS})
def test_no_log_interval(algorithm: Algorithm) -> Any:
    """``log_interval=None``: no dumps but the user's."""
    return [dump["step"] for dump in written(algorithm, 3, log_interval=None)]  # type: ignore[arg-type]


@contract()
def test_user_records(algorithm: Algorithm) -> Any:
    """What a callback records, in `_on_step` and `_on_rollout_end`, is in the next dump."""

    class Records(BaseCallback):
        def _on_step(self) -> bool:
            if not self.locals.get("branching"):
                self.logger.record("mine/step", 5.0)
                self.logger.record_mean("mine/mean", float(self.n_calls % 2))
            return True

        def _on_rollout_end(self) -> None:
            self.logger.record("mine/end", 1)

    model, writer = make(algorithm), Writer()
    model.set_logger(Logger(None, [writer]))
    model.learn(64, Records())
    return [writer.written[0].get(name) for name in ("mine/step", "mine/mean", "mine/end")]


@contract()
def test_logger_that_takes_means(algorithm: Algorithm) -> Any:
    """A logger whose ``record`` averages, as imitation's is."""

    class Means(Logger):
        def record(self, key: str, value: Any, exclude: Any = None) -> None:
            self.record_mean(key, value, exclude)

    model, writer = make(algorithm), Writer()
    model.set_logger(Means(None, [writer]))
    model.learn(640)
    return len(writer.written) >= 2


@contract()
def test_logger_that_floats(algorithm: Algorithm) -> Any:
    """A ``record`` patched on the instance, which takes numbers only."""
    recorded: list[str] = []
    model = make(algorithm)
    model.set_logger(Logger(None, []))
    record = model.logger.record

    def patched(key: str, value: Any, exclude: Any = None) -> None:
        record(key, float(value), exclude)
        recorded.append(key)

    model.logger.record = patched
    model.learn(64)
    return "train/n_updates" in recorded


@contract()
def test_numbers_can_be_averaged(algorithm: Algorithm) -> Any:
    """``numpy.mean`` of each tag over the updates, as result scripts do."""
    dumps = written(algorithm, 3)
    tags = {name for dump in dumps for name in dump if name.startswith("train/")}
    means = {tag: np.mean([dump[tag] for dump in dumps if tag in dump]) for tag in tags}
    return "train/n_updates" in means


@contract(without={VineTRPO: MORE_STEPS})
def test_stats_window_size(algorithm: Algorithm) -> Any:
    """Means over the last episodes, as many as ``stats_window_size``."""
    model = make(algorithm, stats_window_size=2)
    learn(model)
    return model.ep_info_buffer.maxlen, model.ep_success_buffer.maxlen, [info["r"] for info in model.ep_info_buffer]


@contract()
def test_own_logger_is_kept(algorithm: Algorithm) -> Any:
    """``set_logger`` holds over several calls of ``learn``."""
    model, logger = make(algorithm, tensorboard_log="never-made"), Logger(None, [])
    model.set_logger(logger)
    for _ in range(2):
        model.learn(64)
    return model.logger is logger, Path("never-made").exists()


@contract(without={VineTRPO: MORE_STEPS})
def test_n_updates_counts_the_updates(algorithm: Algorithm) -> Any:
    """``train/n_updates`` is 1 after the first update, and each is dumped with the next rollout."""
    return [dump.get("train/n_updates") for dump in written(algorithm, 3)]
