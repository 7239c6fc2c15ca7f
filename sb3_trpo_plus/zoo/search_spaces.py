"""Search spaces for RL Zoo's ``-optimize``."""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import (
    convert_onpolicy_params,
    sample_ppo_params,
    sample_trpo_params,
)


def sample_hyperparams(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
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
        "cg_damping": trial.suggest_float("cg_damping", 1e-3, 0.3, log=True),
        "cg_residual_tol": trial.suggest_float("cg_residual_tol", 1e-5, 0.3, log=True),
        "fisher_sub_sampling_factor": trial.suggest_int("fisher_sub_sampling_factor", 1, 8),
        "ent_coef": trial.suggest_float("ent_coef", 1e-8, 0.03, log=True),
    }


def sample_vine_hyperparams(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Search space of VineTRPO: TRPO's, and the vine's own arguments. Arguments as in :func:`sample_hyperparams`."""
    return {
        **sample_hyperparams(trial, n_actions, n_envs, additional_args),
        "n_rollout_states": trial.suggest_int("n_rollout_states", 4, 32),
        "rollout_length": trial.suggest_int("rollout_length", 4, 200, log=True),
        "bootstrap": trial.suggest_categorical("bootstrap", [False, True]),
    }


def sample_ppo_penalty_hyperparams(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Search space of PPOPenalty: RL Zoo's for PPO, with the KL penalty instead of the clipping. Arguments as above."""
    sampled = sample_ppo_params(trial, n_actions, n_envs, additional_args)
    return {
        **{name: value for name, value in sampled.items() if name != "clip_range"},
        "target_kl": trial.suggest_float("target_kl", 0.001, 0.1, log=True),
        "penalty": trial.suggest_categorical("penalty", ["adaptive", "dual"]),
        "penalty_coef": trial.suggest_float("penalty_coef", 0.1, 10, log=True),
    }


def convert_ppo_penalty_params(sampled: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments from the parameters of a trial of :func:`sample_ppo_penalty_hyperparams`."""
    converted: dict[str, Any] = convert_onpolicy_params({k: v for k, v in sampled.items() if k != "clip_range"})
    return converted


SEARCH: dict[str, tuple[Any, Any]] = {
    "trpo": (sample_hyperparams, convert_onpolicy_params),
    "npg": (sample_hyperparams, convert_onpolicy_params),
    "trpo_vine": (sample_vine_hyperparams, convert_onpolicy_params),
    "ppo_penalty": (sample_ppo_penalty_hyperparams, convert_ppo_penalty_params),
}
