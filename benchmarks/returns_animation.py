"""
An agent of benchmarks/agents at work, as an animated GIF in docs/images: the first seconds of an episode.

    MUJOCO_GL=egl python benchmarks/returns_animation.py HalfCheetah-v4    # egl renders without a display
"""

import argparse
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from PIL import Image
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trpo_plus import TRPO

ROOT = Path(__file__).parent
IMAGES = ROOT.parent / "docs" / "images"
SIZE = 320
SECONDS = 4.0
MOST_FRAMES_A_SECOND = 25


def frames(env_id: str) -> tuple[list[Image.Image], float]:
    """Pictures of the agent's deterministic actions, and how long each lasts at the simulation's own pace, in seconds."""
    folder = ROOT / "agents" / "trpo" / f"{env_id}_1"
    config = folder / env_id / "config.yml"
    wrapper = get_wrapper_class(dict(yaml.unsafe_load(config.read_text())))

    def make() -> gym.Env:
        env = gym.make(env_id, render_mode="rgb_array", width=SIZE, height=SIZE)
        return wrapper(env) if wrapper else env

    venv = DummyVecEnv([make])
    env = VecNormalize.load(str(folder / env_id / "vecnormalize.pkl"), venv)
    env.training = False
    model = TRPO.load(folder / f"{env_id}.zip", device="cpu")
    env.seed(0)
    observations: Any = env.reset()
    steps_a_second = venv.envs[0].unwrapped.metadata["render_fps"]
    steps_a_frame = math.ceil(steps_a_second / MOST_FRAMES_A_SECOND)
    pictures = []
    for step in range(int(SECONDS * steps_a_second)):
        actions, _ = model.predict(observations, deterministic=True)
        observations, _, dones, _ = env.step(actions)
        if dones[0]:
            break
        if step % steps_a_frame == 0:
            picture = venv.render()
            assert picture is not None
            pictures.append(Image.fromarray(picture))
    return pictures, steps_a_frame / steps_a_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", help="an environment that has an agent")
    env_id = parser.parse_args().env
    pictures, seconds = frames(env_id)
    first, *rest = [picture.quantize(64) for picture in pictures]
    file = IMAGES / f"{env_id}.gif"
    first.save(file, save_all=True, append_images=rest, duration=round(1000 * seconds), loop=0, optimize=True)
    print(f"{file}: {len(rest) + 1} frames, {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
