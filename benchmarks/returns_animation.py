"""
A MuJoCo agent of benchmarks/agents at work, as an animated GIF in docs/images: the first seconds of an episode.

    MUJOCO_GL=egl python benchmarks/returns_animation.py HalfCheetah-v4    # egl renders without a display
"""

import argparse
import math
from pathlib import Path
from typing import Any

from huggingface_sb3 import EnvironmentName
from PIL import Image
from returns import AGENTS
from rl_zoo3 import create_test_env, get_saved_hyperparams
from rl_zoo3.utils import get_model_path

from sb3_trpo_plus import TRPO

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZE = 320
SECONDS = 4.0
MOST_FRAMES_A_SECOND = 25


def frames(env_id: str) -> tuple[list[Image.Image], float]:
    """Pictures of the agent's deterministic actions, and how long each lasts at the simulation's own pace, in seconds."""
    _, model_path, log_path = get_model_path(0, str(AGENTS), "trpo", EnvironmentName(env_id))
    hyperparams, stats_path = get_saved_hyperparams(str(Path(log_path) / env_id), test_mode=True)
    rendered = {"render_mode": "rgb_array", "width": SIZE, "height": SIZE, "camera_name": "track"}
    env = create_test_env(
        env_id, stats_path=stats_path, seed=0, should_render=False, hyperparams=hyperparams, env_kwargs=rendered
    )
    model = TRPO.load(model_path, device="cpu")
    observations: Any = env.reset()
    steps_a_second = env.get_attr("metadata")[0]["render_fps"]
    steps_a_frame = math.ceil(steps_a_second / MOST_FRAMES_A_SECOND)
    pictures = []
    for step in range(int(SECONDS * steps_a_second)):
        actions, _ = model.predict(observations, deterministic=True)
        observations, _, dones, _ = env.step(actions)
        if dones[0]:
            break
        if step % steps_a_frame == 0:
            picture = env.render()
            assert picture is not None
            pictures.append(Image.fromarray(picture))
    return pictures, steps_a_frame / steps_a_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", help="an environment of MuJoCo that has an agent")
    env_id = parser.parse_args().env
    pictures, seconds = frames(env_id)
    first, *rest = [picture.quantize(64) for picture in pictures]
    file = IMAGES / f"{env_id}.gif"
    first.save(file, save_all=True, append_images=rest, duration=round(1000 * seconds), loop=0, optimize=True)
    print(f"{file}: {len(rest) + 1} frames, {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
