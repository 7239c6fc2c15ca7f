"""``train --resume``: the arguments of a training that goes on are those with which its run began."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from sb3_trpo_plus.command_line.runs import given, look_here_too, runs_of, with_defaults
from sb3_trpo_plus.files.checkpoint import CHECKPOINTS, Checkpoint, checkpoints_in, newest_checkpoint
from sb3_trpo_plus.zoo import ALGORITHMS
from sb3_trpo_plus.zoo.errors import SettingsError
from sb3_trpo_plus.zoo.going_on import going_on_with

RESUME = "--resume"
HELP = f"""\
{RESUME} [RUN]: go on with a run that has checkpoints, as if it had never stopped, with its own settings: the one whose folder
is RUN, or the newest of --algo and --env. -n may be more than before
"""
# About the process, not about what is trained and how.
MAY_DIFFER = {
    "n_timesteps", "log_folder", "gym_packages", "device", "num_threads", "verbose", "log_interval", "progress", "save_freq",
    "tensorboard_log",
}  # fmt: skip
OF_EACH = {"hyperparams": "-params", "env_kwargs": "--env-kwargs", "eval_env_kwargs": "--eval-env-kwargs"}


@contextmanager
def resuming(arguments: list[str]) -> Iterator[list[str]]:
    """
    While this lasts, RL Zoo's ``train`` goes on with a run, if ``--resume`` is among the arguments.

    :param arguments: of the command line
    :return: the arguments for RL Zoo
    :raises SettingsError: there is no such run, or arguments say otherwise than the run
    :raises SystemExit: there is nothing left to do
    """
    if RESUME not in arguments:
        yield with_defaults(arguments)
        return
    place = arguments.index(RESUME)
    named = [word for word in arguments[place + 1 : place + 2] if not word.startswith("-")]
    rest = arguments[:place] + arguments[place + 1 + len(named) :]
    run = Path(named[0]) if named else _newest(given(with_defaults(rest)))
    saved, config = _settings(run)
    try:
        checkpoint = Checkpoint.read(newest_checkpoint(run / CHECKPOINTS)).progress
    except (OSError, ValueError) as error:
        raise SettingsError(f"{run} can't go on: {error}") from error
    saved["n_timesteps"] = checkpoint["total_timesteps"] - checkpoint["_num_timesteps_at_start"]
    if saved["gym_packages"]:
        look_here_too()
    with ExitStack() as stack:

        def parse_args(self: ArgumentParser, *args: Any, **kwargs: Any) -> Namespace:
            # RL Zoo's own; others may follow.
            stack.close()
            self.set_defaults(**saved)
            parsed: Namespace = self.parse_args(*args, **kwargs)
            _check(run, parsed, saved, config)
            _end_if_finished(run, parsed.n_timesteps, checkpoint["num_timesteps"])
            return parsed

        stack.enter_context(patch.object(ArgumentParser, "parse_args", parse_args))
        with going_on_with(run):
            yield rest


def _newest(asked: Namespace) -> Path:
    """The folder of the newest run of an algorithm and environment that has checkpoints."""
    _check_algorithm(asked.algo)
    home = Path(asked.folder, asked.algo)
    folders = [home / f"{asked.env}_{number}" for number in runs_of(asked.folder, asked.algo, asked.env)]
    begun = [folder for folder in folders if checkpoints_in(folder / CHECKPOINTS)]
    if begun:
        if begun[0] != folders[0]:
            print(f"{folders[0]} has no checkpoint: taking {begun[0]}", file=sys.stderr)
        return begun[0]
    if folders:
        raise SettingsError(_no_checkpoint(folders[0]))
    raise SettingsError(
        f"There is no run of {asked.algo} on {asked.env} in {asked.folder}: train first, with `sb3-trpo-plus train --algo "
        f"{asked.algo} --env {asked.env.gym_id} -f {asked.folder}`, or name the folder of a run, {RESUME} RUN"
    )


def _settings(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments with which a run began, and its hyperparameters."""
    found = sorted(run.glob("*/args.yml"))
    if not found or not found[0].with_name("config.yml").is_file():
        raise SettingsError(
            f"{run} is no folder of a run of `sb3-trpo-plus train`, which has settings in args.yml and config.yml"
            + ("" if run.is_dir() else ": there is no such folder")
        )
    saved, config = (_read(found[0].with_name(name)) for name in ("args.yml", "config.yml"))
    _check_algorithm(saved["algo"])
    if not checkpoints_in(run / CHECKPOINTS):
        raise SettingsError(_no_checkpoint(run))
    if not Path(saved["trained_agent"]).is_file():
        # It was needed where the run began.
        saved["trained_agent"] = ""
    return saved, config


def _read(path: Path) -> dict[str, Any]:
    # As RL Zoo itself reads it, which the command may have been told to read as data.
    with path.open() as file:
        return dict(yaml.load(file, Loader=yaml.UnsafeLoader))


def _no_checkpoint(run: Path) -> str:
    return (
        f"{run} has no checkpoint to go on with: it was ended before its first update was done, after which the first one is "
        f"written. Train anew, without {RESUME}"
    )


def _check_algorithm(algo: str) -> None:
    if algo not in ALGORITHMS:
        raise SettingsError(
            f"{RESUME} goes on from checkpoints, which the algorithms of this package alone write ({', '.join(ALGORITHMS)}), "
            f"and --algo is {algo}: RL Zoo's own way for it is -i MODEL.zip"
        )


def _check(run: Path, asked: Namespace, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise SettingsError if what is asked for is not what the run has, where that can't be changed."""
    others = []
    for name, value in vars(asked).items():
        if name not in saved or name in MAY_DIFFER or value == saved[name]:
            continue
        if name in OF_EACH and isinstance(value, dict):
            has = {**(saved[name] or {}), **(config if name == "hyperparams" else config.get(name) or {})}
            for key, part in value.items():
                if not (key in has and _is_within(part, has[key])):
                    others.append(f"{OF_EACH[name]} {key}:{part} (the run has {has.get(key, 'none')})")
        else:
            others.append(f"--{name.replace('_', '-')} {value} (the run has {saved[name]})")
    if others:
        raise SettingsError(
            f"{RESUME} goes on with the settings of {run}, and these are others: {', '.join(others)}. Leave them out, or "
            f"train anew, without {RESUME}"
        )


def _is_within(part: Any, whole: Any) -> bool:
    """Whether two values are the same, of dictionaries what the first has."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and _is_within(value, whole[key]) for key, value in part.items())
    return bool(part == whole)


def _end_if_finished(run: Path, total: int, done: int) -> None:
    newest = newest_checkpoint(run / CHECKPOINTS)
    models = [model for model in run.glob("*.zip") if (run / model.stem).is_dir()]
    # A process may have been killed between its last checkpoint and the model.
    if done >= total and any(model.stat().st_mtime >= newest.stat().st_mtime for model in models):
        print(f"{run} is finished: {done} steps are done, of {total}. More of them, -n, go further")
        sys.exit(0)
