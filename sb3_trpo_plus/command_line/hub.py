"""RL Zoo's ``push_to_hub`` and ``load_from_hub``: agents to and from the Hugging Face Hub."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_sb3
from huggingface_hub import HfApi, constants, get_token, repocard, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_sb3 import ModelName, ModelRepoId
from requests.exceptions import HTTPError

from sb3_trpo_plus.command_line import scripts
from sb3_trpo_plus.command_line.filming import ffmpeg_command, find_ffmpeg
from sb3_trpo_plus.command_line.model_card import card_metadata, card_text
from sb3_trpo_plus.command_line.runs import asks_for_help, given, of_newest_run, with_defaults
from sb3_trpo_plus.zoo import ALGORITHMS

# Whose exceptions are about the Hub and the way to it.
HUB = {"huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "requests"}


def push_to_hub(arguments: list[str]) -> None:
    """
    RL Zoo's ``push_to_hub``.

    :param arguments: of the command line
    """
    arguments, _ = scripts.import_gym_packages(arguments)
    arguments = of_newest_run(arguments)
    asked = given(arguments)
    repo_id = ModelRepoId(asked.organization, asked.repo_name or ModelName(asked.algo, asked.env))
    pushing = importlib.import_module("huggingface_sb3.push_to_hub")
    metadata_save = repocard.metadata_save

    def generate_metadata(*args: Any) -> dict[str, Any]:
        metadata: dict[str, Any] = pushing._generate_metadata(*args).to_dict()
        return metadata

    def save_card(path: Path, metadata: dict[str, Any]) -> None:
        """Another text in the place of RL Zoo's, whose commands know nothing of our algorithms."""
        if asked.algo in ALGORITHMS:
            path.write_text(card_text(path.parent, asked.algo, asked.env, repo_id, asked.seed), encoding="utf-8")
            metadata = card_metadata(asked.algo, metadata)
        metadata_save(path, metadata)

    replacements = [*scripts.saved_agent(), (repocard, "metadata_save", save_card)]
    # RL Zoo asks for the name that the function had before sb3-team-hf-integration 3.
    if not hasattr(pushing, "generate_metadata"):
        replacements.append((pushing, "generate_metadata", generate_metadata))
    if not asked.no_render and not asks_for_help(arguments):
        ffmpeg = find_ffmpeg()
        if ffmpeg is None:
            scripts.stop("There is no ffmpeg for the video: `pip install 'sb3-trpo-plus[zoo]'` brings one, or use --no-render")
        replacements.append((os, "system", ffmpeg_command(ffmpeg)))
    with _hub_errors(repo_id):
        scripts.run("push_to_hub", arguments, replacements)


def load_from_hub(arguments: list[str]) -> None:
    """
    RL Zoo's ``load_from_hub``.

    :param arguments: of the command line
    """
    arguments, _ = scripts.import_gym_packages(arguments)
    arguments = with_defaults(arguments)
    asked = given(arguments)
    repo = ModelRepoId(asked.organization, asked.repo_name or ModelName(asked.algo, asked.env))
    model_file = ModelName(asked.algo, asked.env).filename
    download = huggingface_sb3.load_from_hub

    def load(repo_id: str, filename: str) -> Any:
        if filename == model_file and not isinstance(try_to_load_from_cache(repo_id, filename), str):
            # The download itself would try six times where nothing answers.
            HfApi().repo_info(repo_id, timeout=10)
        try:
            return download(repo_id, filename)
        except LocalEntryNotFoundError:  # no network, and not in the cache
            raise
        except EntryNotFoundError as error:
            if filename == "vec_normalize.pkl":
                # RL Zoo expects the exception of an older huggingface_hub where an agent has no statistics.
                raise HTTPError(str(error)) from error
            return scripts.stop(
                f"{repo_id} has no {filename}: it was not pushed by RL Zoo's push_to_hub, or as another --algo"
            )

    with _hub_errors(repo):
        try:
            scripts.run("load_from_hub", arguments, [(huggingface_sb3, "load_from_hub", load)])
        except ValueError as error:  # RL Zoo's: the code is not trusted, the folder exists
            scripts.stop(error)


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """One line about what is wrong with the Hub or the way to it, instead of the many of a traceback."""
    try:
        yield
    except Exception as error:
        if not any(base.__module__.split(".")[0] in HUB for base in type(error).__mro__):
            raise
        login = "" if get_token() else "; no token is set: `hf auth login`, or HF_TOKEN, sets one"
        if isinstance(error, RepositoryNotFoundError):
            scripts.stop(f"There is no {repo_id} on {constants.ENDPOINT}, or it is closed to you{login}")
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            scripts.stop(f"{constants.ENDPOINT} refuses {repo_id}{login or '; the token that is set has no right to it'}")
        scripts.stop(f"{constants.ENDPOINT} fails for {repo_id}: {type(error).__name__}: {error}")
