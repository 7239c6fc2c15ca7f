"""Search spaces for RL Zoo's ``-optimize``, which start from the entry: what is not searched keeps the entry's value."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import (
    convert_onpolicy_params,
    sample_ppo_params,
    sample_trpo_params,
)

from sb3_trpo_plus.zoo.schedules import linear_schedule, make_schedules

Settings = dict[str, Any]
Sampler = Callable[[optuna.Trial, int, int, Settings], Settings]
# RL Zoo samples without the entry at hand; each thread of a search runs trials of its own.
_entry: ContextVar[Settings] = ContextVar("entry")
SHAPED = ("learning_rate", "target_kl", "ent_coef")


@contextmanager
def searching_from(entry: Settings) -> Iterator[None]:
    """
    What is sampled meanwhile, in this thread, goes on top of an entry.

    :param entry: as it is in the file, with what the user overrode
    """
    token = _entry.set(entry)
    try:
        yield
    finally:
        _entry.reset(token)


def on_top_of(entry: Settings, sampled: Settings) -> Settings:
    """
    The parameters of a trial, with what the entry says of the same arguments and the search does not: the other
    ``policy_kwargs``, and the shape of a schedule, whose start is what is searched.

    :param entry: as in :func:`searching_from`
    :param sampled: constructor arguments
    :return: constructor arguments, schedules in words
    """
    merged = dict(sampled)
    policy_kwargs = entry.get("policy_kwargs")
    if isinstance(policy_kwargs, str):
        # As RL Zoo evaluates it, with the names it knows.
        of_the_zoo = dict(vars(importlib.import_module("rl_zoo3.exp_manager")))
        evaluate: Callable[..., Any] = of_the_zoo.get("eval", eval)
        policy_kwargs = evaluate(policy_kwargs, of_the_zoo)
    if policy_kwargs and "policy_kwargs" in sampled:
        merged["policy_kwargs"] = {**policy_kwargs, **sampled["policy_kwargs"]}
    for name in SHAPED:
        if name in sampled and isinstance(entry.get(name), str):
            schedule = linear_schedule(name, entry[name])
            merged[name] = f"lin_{sampled[name]}_{sampled[name] * schedule(0.0) / schedule(1.0)}"
    return merged


def _from_the_entry(sample: Sampler) -> Sampler:
    @wraps(sample)
    def sampled_on_top(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Settings) -> Settings:
        arguments = on_top_of(_entry.get({}), sample(trial, n_actions, n_envs, additional_args))
        make_schedules(arguments)
        if isinstance(arguments["learning_rate"], str):
            arguments["learning_rate"] = linear_schedule("learning_rate", arguments["learning_rate"])
        return arguments

    return sampled_on_top


def sample_hyperparams(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Settings) -> Settings:
    """
    Search space of TRPO and NPG: RL Zoo's for TRPO, and further arguments, most of which only exist here.

    :param trial: Optuna's trial
    :param n_actions: dimensions of a continuous action
    :param n_envs: number of environments
    :param additional_args: passed on to RL Zoo's search space
    :return: sampled parameters
    """
    return {
        **sample_trpo_params(trial, n_actions, n_envs, additional_args),
        "cg_damping": trial.suggest_float("cg_damping", 1e-3, 3.0, log=True),
        "cg_residual_tol": trial.suggest_float("cg_residual_tol", 1e-5, 0.3, log=True),
        "fisher_sub_sampling_factor": trial.suggest_int("fisher_sub_sampling_factor", 1, 8),
        "ent_coef": trial.suggest_float("ent_coef", 1e-8, 0.03, log=True),
    }


def sample_vine_hyperparams(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Settings) -> Settings:
    """Search space of VineTRPO: TRPO's, and the vine's own arguments. Arguments as in :func:`sample_hyperparams`."""
    return {
        **sample_hyperparams(trial, n_actions, n_envs, additional_args),
        "n_rollout_states": trial.suggest_int("n_rollout_states", 4, 32),
        "rollout_length": trial.suggest_int("rollout_length", 4, 200, log=True),
        "bootstrap": trial.suggest_categorical("bootstrap", [False, True]),
    }


def sample_ppo_penalty_hyperparams(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Settings) -> Settings:
    """Search space of PPOPenalty: RL Zoo's for PPO, with the KL penalty instead of the clipping. Arguments as above."""
    sampled = sample_ppo_params(trial, n_actions, n_envs, additional_args)
    return {
        **{name: value for name, value in sampled.items() if name != "clip_range"},
        "target_kl": trial.suggest_float("target_kl", 0.001, 0.1, log=True),
        "penalty": trial.suggest_categorical("penalty", ["adaptive", "dual"]),
        "penalty_coef": trial.suggest_float("penalty_coef", 0.1, 10, log=True),
    }


def convert_ppo_penalty_params(sampled: Settings) -> Settings:
    """Constructor arguments from the parameters of a trial of :func:`sample_ppo_penalty_hyperparams`."""
    converted: Settings = convert_onpolicy_params({k: v for k, v in sampled.items() if k != "clip_range"})
    return converted


SEARCH: dict[str, tuple[Any, Any]] = {
    "trpo": (_from_the_entry(sample_hyperparams), convert_onpolicy_params),
    "npg": (_from_the_entry(sample_hyperparams), convert_onpolicy_params),
    "trpo_vine": (_from_the_entry(sample_vine_hyperparams), convert_onpolicy_params),
    "ppo_penalty": (_from_the_entry(sample_ppo_penalty_hyperparams), convert_ppo_penalty_params),
}
