"""Callbacks: what they are handed, when they are called, and what they may do."""

import copy
import io
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import Logger
from torch.utils.tensorboard import SummaryWriter

from sb3_trpo_plus import VineTRPO
from tests.contract.programs import (
    MORE_STEPS,
    Algorithm,
    Looking,
    assert_at_least,
    contents,
    contract,
    envs,
    learn,
    looks,
    make,
    rollout,
)

SPACES = ("box", "discrete", "multi_discrete", "multi_binary")
OF_A_STEP = ("obs_tensor", "actions", "values", "log_probs", "clipped_actions", "new_obs", "rewards", "dones")
TENSORS = ("obs_tensor", "values", "log_probs")
# Of SB3's loop over truncated episodes: what the step before has left.
LEFT_OVER = {"idx", "done", "terminal_obs", "terminal_value"}
FIELDS_OF_A_STEP = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs")


@contract(compare=assert_at_least)
def test_locals_have_the_same_keys_in_each_step(algorithm: Algorithm) -> Any:
    """``set(self.locals)`` in `_on_step`, superset allowed."""
    return set.intersection(*looks(algorithm, lambda callback: set(callback.locals) - LEFT_OVER))


@contract(compare=assert_at_least)
def test_locals_have_the_same_keys_at_the_end(algorithm: Algorithm) -> Any:
    """``set(self.locals)`` in `_on_rollout_end`, superset allowed."""
    return looks(algorithm, lambda callback: set(callback.locals) - LEFT_OVER, "rollout_end")[0]


@contract(compare=assert_at_least)
def test_globals_have_the_same_keys(algorithm: Algorithm) -> Any:
    """``self.globals`` are those of SB3's module."""
    return looks(algorithm, lambda callback: set(callback.globals), "training_start")[0] - {"__builtins__"}


@pytest.mark.parametrize("space", SPACES)
@contract()
def test_locals_are_of_the_same_types_and_shapes(algorithm: Algorithm, space: str) -> Any:
    """Tensors are ``torch.Tensor``, arrays ``numpy.ndarray``, of the same dtype and shape."""

    def kinds(callback: Looking) -> list[Any]:
        values = [callback.locals[name] for name in OF_A_STEP]
        return [(type(value).__name__, str(value.dtype), tuple(value.shape)) for value in values]

    return looks(algorithm, kinds, env=envs(space))


@pytest.mark.parametrize("space", SPACES)
@contract()
def test_locals_are_the_same_numbers(algorithm: Algorithm, space: str) -> Any:
    """Same seed, same policy: the same observations, actions, values, log-probabilities and rewards in each step."""
    return looks(algorithm, lambda callback: [np.array(callback.locals[name]) for name in OF_A_STEP], env=envs(space))


@pytest.mark.parametrize("name", TENSORS)
@contract()
def test_local_is_a_tensor_to_isinstance(algorithm: Algorithm, name: str) -> Any:
    """``isinstance(self.locals['values'], torch.Tensor)`` and ``torch.is_tensor``."""
    return looks(algorithm, lambda it: (isinstance(it.locals[name], th.Tensor), th.is_tensor(it.locals[name])))


@contract()
def test_infos_and_counts_of_a_step(algorithm: Algorithm) -> Any:
    """``infos`` is a list of a dict for each environment; ``n_steps`` and ``n_rollout_steps`` are numbers."""

    def kinds(callback: Looking) -> list[Any]:
        local = callback.locals
        return [[sorted(info) for info in local["infos"]], int(local["n_steps"]), int(local["n_rollout_steps"])]

    return looks(algorithm, kinds)


@pytest.mark.parametrize("space", SPACES)
@contract()
def test_distribution_of_the_locals_observations(algorithm: Algorithm, space: str) -> Any:
    """``policy.get_distribution(self.locals['obs_tensor'])`` gives the mode of each action."""

    def mode(callback: Looking) -> Any:
        with th.no_grad():
            return callback.model.policy.get_distribution(callback.locals["obs_tensor"]).mode()

    return looks(algorithm, mode, env=envs(space))


@contract()
def test_values_are_those_that_the_policy_predicts(algorithm: Algorithm) -> Any:
    """``policy.predict_values(self.locals['obs_tensor'])`` is ``self.locals['values']``."""

    def difference(callback: Looking) -> float:
        with th.no_grad():
            predicted = callback.model.policy.predict_values(callback.locals["obs_tensor"])
        return float((predicted - callback.locals["values"]).abs().max())

    return looks(algorithm, difference)


@contract()
def test_actions_can_be_evaluated(algorithm: Algorithm) -> Any:
    """``policy.evaluate_actions`` of the locals' observations and actions gives the locals' values and log-probabilities."""

    def evaluated(callback: Looking) -> list[Any]:
        local = callback.locals
        with th.no_grad():
            values, log_probs, entropy = callback.model.policy.evaluate_actions(
                local["obs_tensor"], th.as_tensor(local["actions"])
            )
        assert th.allclose(values, local["values"], atol=1e-5)
        assert th.allclose(log_probs, local["log_probs"], atol=1e-4)
        return [entropy]

    return looks(algorithm, evaluated)


@contract()
def test_locals_can_be_copied(algorithm: Algorithm) -> Any:
    """``copy.deepcopy`` of what is in the locals gives tensors of the same numbers."""
    return looks(algorithm, lambda it: copy.deepcopy({name: it.locals[name] for name in TENSORS}))


@contract()
def test_locals_can_be_pickled(algorithm: Algorithm) -> Any:
    """``pickle`` brings back tensors of the same numbers."""
    return looks(algorithm, lambda it: pickle.loads(pickle.dumps({name: it.locals[name] for name in (*TENSORS, "actions")})))


@contract()
def test_locals_can_be_stored_by_torch(algorithm: Algorithm) -> Any:
    """``torch.save`` and ``torch.load(weights_only=True)`` of the locals' tensors."""

    def stored(callback: Looking) -> Any:
        with tempfile.TemporaryFile() as file:
            th.save([callback.locals[name] for name in TENSORS], file)
            file.seek(0)
            return th.load(file, weights_only=True)

    return looks(algorithm, stored)


@contract()
def test_locals_are_a_dict(algorithm: Algorithm) -> Any:
    """``isinstance(self.locals, dict)``."""
    return looks(algorithm, lambda callback: isinstance(callback.locals, dict))


HOW: dict[str, Any] = {
    "dict": dict,
    "copy": lambda local: local.copy(),
    "copy.copy": copy.copy,
    "unpacked": lambda local: {**local},
    "union": lambda local: local | {},
    "arguments": lambda local: (lambda **kwargs: kwargs)(**local),
    "items": lambda local: {key: value for key, value in local.items()},  # noqa: C416  # to go through items()
    "get": lambda local: {name: local.get(name) for name in TENSORS},
    "setdefault": lambda local: {name: local.setdefault(name, None) for name in TENSORS},
    "keys and values": lambda local: dict(zip(local.keys(), local.values(), strict=True)),
    "updated": lambda local: _updated(local),
}


def _updated(local: dict[str, Any]) -> dict[str, Any]:
    mine: dict[str, Any] = {}
    mine.update(local)
    return mine


@pytest.mark.parametrize("how", HOW)
@contract()
def test_locals_read_in_any_way_of_a_dict(algorithm: Algorithm, how: str) -> Any:
    """However a dict can be read, what is found are the tensors."""

    def read(callback: Looking) -> Any:
        found = HOW[how](callback.locals)
        return [found[name] for name in TENSORS]

    return looks(algorithm, read)


@contract()
def test_locals_are_searched(algorithm: Algorithm) -> Any:
    """``'values' in self.locals``, with a default for what is not there."""
    return looks(
        algorithm,
        lambda it: [*(name in it.locals for name in OF_A_STEP), "nothing" in it.locals, it.locals.get("nothing", 7)],
    )


@contract()
def test_all_tensors_of_the_locals_are_found(algorithm: Algorithm) -> Any:
    """A search through ``self.locals.items()`` by type finds observations, values and log-probabilities."""
    return looks(
        algorithm,
        lambda it: sorted(name for name, value in it.locals.items() if isinstance(value, th.Tensor) and name in TENSORS),
    )


@contract()
def test_kept_locals_are_still_those_of_their_step(algorithm: Algorithm) -> Any:
    """A list of ``self.locals['values']`` and others over the steps is the buffer's column after the rollout."""
    model = make(algorithm)
    kept = learn(model, step=lambda callback: [callback.locals[name] for name in ("values", "log_probs", "actions")])
    stacked = [np.stack([np.asarray(step[column]) for step in kept]) for column in range(3)]
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.zero_()
    return stacked


@contract()
def test_copies_of_the_dict_are_still_those_of_their_step(algorithm: Algorithm) -> Any:
    """A list of ``dict(self.locals)`` over the steps, looked at after the training."""
    return [[kept[name] for name in TENSORS] for kept in looks(algorithm, lambda callback: dict(callback.locals))]


@contract()
def test_kept_rewards_get_what_truncated_episodes_would_have_earned(algorithm: Algorithm) -> Any:
    """SB3 adds the value of the last observation to ``self.locals['rewards']`` in place, after the callback."""
    return looks(algorithm, lambda callback: callback.locals["rewards"])


@contract()
def test_values_go_through_torch_functions(algorithm: Algorithm) -> Any:
    """``torch.stack``, ``torch.cat``, operators, ``.numpy()`` and ``float()`` of the locals' tensors."""

    def used(callback: Looking) -> list[Any]:
        values, log_probs = callback.locals["values"], callback.locals["log_probs"]
        together = th.cat([values.flatten(), log_probs])
        return [th.stack([values, values]), together, 2 * values - values.mean(), values.numpy().copy(), float(log_probs[0])]

    return looks(algorithm, used)


@contract()
def test_values_go_into_a_compiled_function(algorithm: Algorithm) -> Any:
    """``torch.compile`` takes the locals' tensors."""
    double = th.compile(lambda x: 2 * x, backend="eager")
    return looks(algorithm, lambda callback: double(callback.locals["values"]))


@contract()
def test_values_go_into_a_histogram(algorithm: Algorithm) -> Any:
    """``SummaryWriter.add_histogram`` takes the locals' tensors."""
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        steps = looks(algorithm, lambda it: writer.add_histogram("values", it.locals["values"], it.step))
        writer.close()
        return len(steps), sum(path.stat().st_size > 500 for path in Path(folder).iterdir())


@contract()
def test_own_update_locals_is_called(algorithm: Algorithm) -> Any:
    """A callback's own ``update_locals`` gets each step's variables, as tensors."""

    class Own(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.given: list[Any] = []

        def update_locals(self, locals_: dict[str, Any]) -> None:
            if "values" in locals_ and not locals_.get("branching"):
                self.given.append((locals_["values"], isinstance(locals_["values"], th.Tensor), locals_["rewards"].copy()))

        def _on_step(self) -> bool:
            return True

    callback = Own()
    make(algorithm).learn(64, callback)
    return callback.given


@contract()
def test_children_of_event_callbacks_get_the_locals(algorithm: Algorithm) -> Any:
    """The child of an ``EveryNTimesteps`` sees the values of the step at which it is called."""
    child = Looking(step=lambda callback: [callback.locals["values"], callback.locals["obs_tensor"]])
    make(algorithm).learn(64, EveryNTimesteps(8, child))
    return child.seen


@contract()
def test_callbacks_in_lists_get_the_locals(algorithm: Algorithm) -> Any:
    """Each callback of a list, and of a list in a list."""
    callbacks = [Looking(step=lambda callback: callback.locals["values"]) for _ in range(2)]
    make(algorithm).learn(64, [callbacks[0], CallbackList([callbacks[1]])])
    return [callback.seen for callback in callbacks]


@pytest.mark.parametrize("wrapped", [False, True])
@contract()
def test_function_as_a_callback(algorithm: Algorithm, wrapped: bool) -> Any:
    """A plain function is called with ``self.locals`` and ``self.globals`` at each step."""
    seen: list[Any] = []

    def function(local: dict[str, Any], of_module: dict[str, Any]) -> bool:
        if not local.get("branching"):
            seen.append([local["values"], local["log_probs"], sorted({"th", "np"} & set(of_module))])
        return True

    make(algorithm).learn(64, ConvertCallback(function) if wrapped else function)
    return seen


@contract(without={VineTRPO: MORE_STEPS})
def test_order_of_events(algorithm: Algorithm) -> Any:
    """Start of the training, start of a rollout, its steps, its end, and the end of the training."""
    names = ("training_start", "rollout_start", "step", "rollout_end", "training_end")
    functions = {name: lambda callback, name=name: (name, callback.num_timesteps) for name in names}
    return learn(make(algorithm, n_steps=4, batch_size=8), 2, **functions)


@contract()
def test_counts_of_a_callback(algorithm: Algorithm) -> Any:
    """``n_calls``, ``num_timesteps``, ``training_env`` and ``model`` in each step."""
    return looks(
        algorithm,
        lambda it: (
            it.n_calls,
            it.num_timesteps,
            it.model.num_timesteps,
            it.training_env.num_envs,
            it.locals["self"] is it.model,
        ),
    )


@pytest.mark.parametrize("stop_at", [1, 5, 32])
@contract()
def test_callback_ends_the_training(algorithm: Algorithm, stop_at: int) -> Any:
    """A callback that returns False: no update, the events, counts and rows that SB3 leaves."""

    class Stop(Looking):
        def _on_step(self) -> bool:
            return super()._on_step() and self.step < stop_at

    callback = Stop(rollout_end=lambda _: "rollout_end", training_end=lambda _: "training_end")
    model = make(algorithm)
    assert model.learn(640, callback) is model
    buffer = model.rollout_buffer
    rows = {name: array[: stop_at - 1] for name, array in contents(buffer, FIELDS_OF_A_STEP).items()}
    return callback.seen, buffer.pos, buffer.full, model.num_timesteps, model._n_updates, rows


@contract(without={VineTRPO: MORE_STEPS})
def test_training_ends_after_some_episodes(algorithm: Algorithm) -> Any:
    """``StopTrainingOnMaxEpisodes``."""
    return make(algorithm).learn(640, StopTrainingOnMaxEpisodes(3)).num_timesteps


@contract()
def test_training_ends_at_a_reward(algorithm: Algorithm) -> Any:
    """``EvalCallback`` with ``StopTrainingOnRewardThreshold``: after the first evaluation."""
    stop = StopTrainingOnRewardThreshold(-1e6)
    evaluate = EvalCallback(envs(n_envs=1), callback_on_new_best=stop, eval_freq=5, n_eval_episodes=2, verbose=0)
    return make(algorithm).learn(640, evaluate).num_timesteps


@contract()
def test_training_ends_without_improvement(algorithm: Algorithm) -> Any:
    """``EvalCallback`` with ``StopTrainingOnNoModelImprovement`` evaluates before it ends."""
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=0, min_evals=1)
    evaluate = EvalCallback(envs(n_envs=1), callback_after_eval=stop, eval_freq=8, n_eval_episodes=2, verbose=0)
    model = make(algorithm).learn(2000, evaluate)
    return model.num_timesteps < 2000, evaluate.n_calls % 8


@contract()
def test_eval_callback_writes_its_files(algorithm: Algorithm) -> Any:
    """``EvalCallback`` saves evaluations and the best model, which opens and acts as at that time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        evaluate = EvalCallback(
            envs(n_envs=1), eval_freq=16, n_eval_episodes=2, log_path=folder, best_model_save_path=folder, verbose=0
        )
        model = make(algorithm).learn(64, evaluate)
        results = np.load(path / "evaluations.npz")
        best = type(model).load(path / "best_model")
        first = results["results"][0]
        return (
            sorted(file.name for file in path.iterdir()),
            first.shape,
            first,
            results["timesteps"][:2],
            type(best.num_timesteps),
        )


@contract(without={VineTRPO: MORE_STEPS})
def test_checkpoints_are_those_of_their_step(algorithm: Algorithm) -> Any:
    """``CheckpointCallback`` saves models in the middle of a rollout."""
    with tempfile.TemporaryDirectory() as folder:
        make(algorithm).learn(64, CheckpointCallback(8, folder, "agent"))
        files = sorted(path.name for path in Path(folder).iterdir())
        return files, [algorithm.load(Path(folder) / name).num_timesteps for name in files]


@contract(without={VineTRPO: MORE_STEPS})
def test_logs_every_n_timesteps(algorithm: Algorithm) -> Any:
    """``LogEveryNTimesteps`` dumps in the middle of a rollout."""
    model, dumps = make(algorithm), list[int]()
    logger = Logger(None, [])
    logger.dump = lambda step=0: dumps.append(step)  # type: ignore[method-assign]
    model.set_logger(logger)
    model.learn(64, LogEveryNTimesteps(n_steps=10), log_interval=None)
    return dumps


@contract()
def test_progress_bar(algorithm: Algorithm) -> Any:
    """``learn(progress_bar=True)`` comes to its end."""
    return make(algorithm, n_steps=4, batch_size=8).learn(8, progress_bar=True).num_timesteps >= 8


@contract()
def test_rewards_shaped_in_the_callback_reach_the_buffer(algorithm: Algorithm) -> Any:
    """``self.locals['rewards'][:] = ...`` in place."""

    def shape(callback: Looking) -> None:
        callback.locals["rewards"][:] = callback.step

    return _buffer_after(algorithm, shape)


@contract()
def test_actions_changed_in_the_callback_reach_the_buffer(algorithm: Algorithm) -> Any:
    """``self.locals['actions'][:] = ...`` in place."""

    def change(callback: Looking) -> None:
        callback.locals["actions"][:] = 0.25

    return _buffer_after(algorithm, change, ("actions",))


@pytest.mark.parametrize("name", ["values", "log_probs"])
@contract()
def test_tensors_changed_in_the_callback_reach_the_buffer(algorithm: Algorithm, name: str) -> Any:
    """``self.locals['values'].fill_(...)`` in place."""

    def change(callback: Looking) -> None:
        if callback.step % 2:
            callback.locals[name].fill_(callback.step)

    return _buffer_after(algorithm, change)


@contract()
def test_infos_changed_in_the_callback_are_the_ones_used(algorithm: Algorithm) -> Any:
    """A truncation taken back in ``self.locals['infos']`` is not bootstrapped."""

    def change(callback: Looking) -> None:
        for info in callback.locals["infos"]:
            info["TimeLimit.truncated"] = False

    return _buffer_after(algorithm, change)


def _buffer_after(algorithm: Algorithm, change: Any, fields: tuple[str, ...] = FIELDS_OF_A_STEP) -> dict[str, Any]:
    found = rollout(make(algorithm), step=change)
    return {name: found[name] for name in fields}


@pytest.mark.parametrize("field", FIELDS_OF_A_STEP)
@contract()
def test_buffer_is_filled_up_to_the_present_step(algorithm: Algorithm, field: str) -> Any:
    """``rollout_buffer.values`` and the others, read in `_on_step`: the rows of the steps before, bootstraps included."""

    def rows(callback: Looking) -> Any:
        buffer = callback.model.rollout_buffer
        return buffer.pos, buffer.full, getattr(buffer, field)[: callback.step - 1].copy()

    return looks(algorithm, rows)


@contract()
def test_buffer_is_complete_at_the_end_of_a_rollout(algorithm: Algorithm) -> Any:
    """In `_on_rollout_end`: all fields, and in the locals the values of the last observations."""
    return looks(
        algorithm,
        lambda it: (contents(it.model.rollout_buffer), it.model.rollout_buffer.full, it.locals["values"], it.locals["dones"]),
        "rollout_end",
    )


@contract()
def test_values_at_the_end_of_the_training(algorithm: Algorithm) -> Any:
    """In `_on_training_end` the locals still have the tensors of the last rollout."""
    return looks(
        algorithm,
        lambda it: [isinstance(it.locals[name], th.Tensor) for name in TENSORS] + [it.locals["values"]],
        "training_end",
    )


@contract()
def test_model_is_used_in_the_callback(algorithm: Algorithm) -> Any:
    """``predict``, ``save``, ``get_parameters`` and a copy of the policy in `_on_step` do not disturb the rollout."""

    def use(callback: Looking) -> Any:
        callback.model.save(io.BytesIO())
        copied = copy.deepcopy(callback.model.policy)
        observations = callback.locals["new_obs"]
        return [
            callback.model.predict(observations, deterministic=True)[0],
            copied.predict(observations, deterministic=True)[0],
        ]

    used: list[Any] = []
    found = rollout(make(algorithm, n_steps=8, batch_size=16), step=lambda callback: used.append(use(callback)))
    return used, found
