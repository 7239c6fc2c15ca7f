"""What a command says when something is not installed, or a file is refused."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gymnasium.error import DependencyNotInstalled, UnregisteredEnv

from sb3_trpo_plus.files.errors import ModelFileError

# The extra of this package that brings a module; those of RL Zoo that it imports without asking for them, too.
EXTRAS = {
    "zoo": (
        *("rl_zoo3", "huggingface_sb3", "huggingface_hub", "optuna", "yaml", "requests", "tqdm", "rich", "moviepy", "wasabi"),
        *("seaborn", "pytablewriter", "pandas", "scipy", "rliable", "imageio_ffmpeg", "matplotlib"),
    ),
    "tensorboard": ("tensorboard",),
    "envs": ("mujoco", "Box2D", "ale_py", "pygame", "cv2"),
}
REGISTERED_BY = (
    "Environments of other packages, and your own, are registered by `--gym-packages MODULE`; "
    "`pip install 'sb3-trpo-plus[envs]'` brings MuJoCo, Box2D, Atari and the classic environments"
)


@contextmanager
def explained() -> Iterator[None]:
    """
    End the program in one line that names the extra to install, where one is missing, the environment's id, or what is wrong
    with a file.

    :raises SystemExit: in the place of these errors; all others are left as they are
    """
    try:
        yield
    except ImportError as error:
        extra = _extra_of(error)
        if extra is None:
            raise
        sys.exit(f"{error}: install what this command needs with `pip install 'sb3-trpo-plus[{extra}]'`")
    except DependencyNotInstalled as error:
        sys.exit(f"{error}; `pip install 'sb3-trpo-plus[envs]'` brings MuJoCo, Box2D, Atari and the classic environments")
    except ModelFileError as error:
        sys.exit(str(error))
    except UnregisteredEnv as error:
        sys.exit(f"{error} {REGISTERED_BY}")
    except ValueError as error:
        if "not found in gym registry" not in str(error):
            raise
        sys.exit(f"{error} {REGISTERED_BY}")


def _extra_of(error: ImportError) -> str | None:
    named = (error.name or "").split(".")[0]
    for extra, modules in EXTRAS.items():
        # SB3 raises ImportErrors of its own, which have a sentence in the place of a name.
        if named in modules or (not named and any(module in str(error) for module in modules)):
            return extra
    return None
