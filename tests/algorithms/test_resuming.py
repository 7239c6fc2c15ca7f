"""A training that is stopped and resumed ends as one that was not."""

import csv
import json
import random
import signal
import subprocess
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, TrainingCheckpoint, VineTRPO
from sb3_trpo_plus.envs.vec_snapshots import running_statistics
from sb3_trpo_plus.states import Restorable
from tests.conftest import RandomEnv, random_env

MEMBERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "trpo": (TRPO, {}),
    "npg": (NPG, {}),
    "ppo_penalty": (PPOPenalty, {"n_epochs": 2}),
    "vine": (VineTRPO, {"n_rollout_states": 8, "rollout_length": 5}),
    "gsde": (TRPO, {"use_sde": True}),
    "schedules": (TRPO, {"learning_rate": lambda left: 0.01 * left, "target_kl": lambda left: 0.001 + 0.02 * left}),
}
TOTAL = 512


class Died(Exception):
    """Stands for the end of a process."""


class Dies(BaseCallback):
    """Ends a training within a rollout, where a real process may be killed."""

    def __init__(self, after: float) -> None:
        super().__init__()
        self.after = after

    def _on_step(self) -> bool:
        if self.num_timesteps > self.after:
            raise Died
        return True


def environment(vec_env: type[VecEnv] = DummyVecEnv, seed: int = 0, n_envs: int = 2, **kwargs: Any) -> VecEnv:
    made = make_vec_env("Pendulum-v1", n_envs, seed=seed, vec_env_cls=vec_env, wrapper_class=Restorable, **kwargs)  # type: ignore[arg-type]
    return VecNormalize(made, gamma=0.98)


def make(member: str, env: VecEnv, **kwargs: Any) -> Any:
    algorithm, own = MEMBERS[member]
    return algorithm("MlpPolicy", env, n_steps=32, batch_size=32, n_critic_updates=2, seed=3, device="cpu", **own, **kwargs)


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """The same to the bit, whatever is in it."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}.{index}")
    elif isinstance(one, (np.ndarray, th.Tensor)):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), where
    else:
        assert one == other, where


def ends_with(model: Any) -> dict[str, Any]:
    """Everything that a training is compared by."""
    return {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict()["state"],
        "counts": (model.num_timesteps, model._n_updates, model._total_timesteps, model._num_timesteps_at_start),
        "iterations": model._n_iterations,
        "skips": vars(model._skips),
        "statistics": running_statistics(model.env),
        "episodes": [(episode["r"], episode["l"]) for episode in model.ep_info_buffer],
        "observations": model._last_obs,
        "starts": model._last_episode_starts,
        "torch": th.get_rng_state(),
        "numpy": np.random.get_state()[1],
        "python": random.getstate(),
        "space": model.action_space.sample(),
        "next reset": model.env.reset(),
    }


def disturb() -> None:
    """Another process has other states of the generators."""
    th.manual_seed(99)
    np.random.seed(99)
    random.seed(99)


@pytest.mark.parametrize("member", MEMBERS)
def test_as_if_never_stopped(member: str, tmp_path: Path) -> None:
    # The steps of a vine's branches count, too.
    total = 2048 if member == "vine" else TOTAL
    whole = make(member, environment()).learn(total, TrainingCheckpoint(tmp_path / "whole", seconds=0))
    expected = ends_with(whole)

    model = make(member, environment())
    for after in (0.4 * total, 0.7 * total):
        with pytest.raises(Died):
            model.learn(total, [TrainingCheckpoint(tmp_path / "stopped", seconds=0), Dies(after)])
        disturb()
        model = MEMBERS[member][0].resume(tmp_path / "stopped", environment(seed=50), device="cpu")
        assert 0 < model.num_timesteps <= after
    model.learn(total, TrainingCheckpoint(tmp_path / "stopped", seconds=0))
    assert_equal(ends_with(model), expected)


def test_workers(tmp_path: Path) -> None:
    """With SubprocVecEnv, the environments of the training are those of other processes."""
    ended = []
    with ExitStack() as stack:
        whole, first, second = (environment(SubprocVecEnv, seed) for seed in (0, 0, 50))
        for env in (whole, first, second):
            stack.callback(env.close)
        ended.append(ends_with(make("trpo", whole).learn(TOTAL)))
        with pytest.raises(Died):
            make("trpo", first).learn(TOTAL, [TrainingCheckpoint(tmp_path, seconds=0), Dies(200)])
        ended.append(ends_with(TRPO.resume(tmp_path, second, device="cpu").learn(TOTAL)))
    assert_equal(*ended)


CHILD = """
import sys
from tests.algorithms.test_resuming import environment, make
from sb3_trpo_plus import TRPO, TrainingCheckpoint
folder = sys.argv[1]
model = TRPO.resume(folder, environment()) if len(sys.argv) > 2 else make("trpo", environment())
print("begun", flush=True)
model.learn(10_000_000, TrainingCheckpoint(folder, seconds=0, verbose=1))
"""


def test_killed(tmp_path: Path) -> None:
    """A real SIGKILL, at some moment after the third checkpoint, and then one of the process that went on."""
    for arguments in ([], ["resume"]):
        with subprocess.Popen([sys.executable, "-c", CHILD, tmp_path, *arguments], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(4):
                assert process.stdout.readline()
            process.send_signal(signal.SIGKILL)
    model = TRPO.resume(tmp_path, environment(), device="cpu")
    reached = model.num_timesteps
    model.learn(10_000_000, StopAt(reached + 128))
    whole = make("trpo", environment())
    whole.learn(10_000_000, StopAt(reached + 128))
    assert reached >= 6 * 64
    assert_equal(whole.policy.state_dict(), model.policy.state_dict())


SHARE = """
import importlib, sys
from tests.algorithms.test_resuming import trained_on
library, folder, total = sys.argv[1:]
importlib.import_module(library)
trained_on(folder, int(total))
"""


def trained_on(folder: str, total: int) -> None:
    """Begin a training, or go on with that of a folder's checkpoint, up to a number of steps."""
    begun = list(Path(folder).glob("*.zip"))
    model = TRPO.resume(folder, environment(), device="cpu") if begun else make("trpo", environment())
    model.learn(total, TrainingCheckpoint(folder))


@pytest.mark.parametrize("libraries", [("rl_zoo3", "gymnasium"), ("gymnasium", "rl_zoo3")])
def test_with_rl_zoo_and_without(libraries: tuple[str, str], tmp_path: Path) -> None:
    """RL Zoo replaces the time limit's class in its process, and another, without it, goes on; or the other way round."""
    # Pendulum's episodes of 200 steps, in each of two environments, end in the second share.
    for library, total in zip(libraries, (TOTAL // 2, TOTAL), strict=True):
        subprocess.run([sys.executable, "-c", SHARE, library, tmp_path, str(total)], check=True)
    resumed = TRPO.resume(tmp_path, environment(), device="cpu")
    assert resumed.num_timesteps == TOTAL
    assert_equal(resumed.policy.state_dict(), make("trpo", environment()).learn(TOTAL).policy.state_dict())


class StopAt(BaseCallback):
    """Ends a training once a number of steps is reached."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        return self.num_timesteps < self.at


def test_wrappers_dicts_and_monitors(tmp_path: Path) -> None:
    """Frames, a Dict space, VecMonitor's counts and an environment that draws from its spaces."""

    def wrapped() -> VecEnv:
        space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-1, 1, (3,))})
        return VecFrameStack(VecNormalize(VecMonitor(DummyVecEnv([lambda: random_env("discrete", space)] * 2))), 3)

    def built() -> Any:
        return TRPO("MultiInputPolicy", wrapped(), n_steps=32, batch_size=32, seed=1, device="cpu")

    # Beside a callback that it does not know, the collection goes step by step, and rounds otherwise.
    expected = ends_with(built().learn(TOTAL, Dies(np.inf)))
    with pytest.raises(Died):
        built().learn(TOTAL, [TrainingCheckpoint(tmp_path, seconds=0), Dies(200)])
    assert_equal(ends_with(TRPO.resume(tmp_path, wrapped(), device="cpu").learn(TOTAL, Dies(np.inf))), expected)


def test_images(tmp_path: Path) -> None:
    """SB3 hands on images whose channels are last in memory, and a convolution rounds otherwise where they are first."""

    def built(env: VecEnv) -> Any:
        return TRPO("CnnPolicy", env, n_steps=16, batch_size=32, n_critic_updates=1, seed=1, device="cpu")

    def images() -> VecEnv:
        space = spaces.Box(0, 255, (36, 36, 3), np.uint8)
        return VecFrameStack(DummyVecEnv([lambda: random_env("discrete", space)] * 2), 2)

    expected = built(images()).learn(160).policy.state_dict()
    with pytest.raises(Died):
        built(images()).learn(160, [TrainingCheckpoint(tmp_path, seconds=0), Dies(80)])
    assert_equal(TRPO.resume(tmp_path, images(), device="cpu").learn(160).policy.state_dict(), expected)


def test_callbacks_go_on(tmp_path: Path) -> None:
    """Evaluations come when they would have come, of the same environments; counters within lists go on too."""

    def callbacks(*more: BaseCallback) -> list[BaseCallback]:
        best = EvalCallback(environment(seed=7, n_envs=1), eval_freq=45, n_eval_episodes=1, deterministic=False, verbose=0)
        return [CallbackList([best, EveryNTimesteps(100, StopAt(TOTAL * 2))]), *more]

    whole = callbacks()
    expected = ends_with(make("trpo", environment()).learn(TOTAL, whole))
    with pytest.raises(Died):
        make("trpo", environment()).learn(TOTAL, callbacks(TrainingCheckpoint(tmp_path, seconds=0), Dies(300)))
    again = callbacks()
    assert_equal(ends_with(TRPO.resume(tmp_path, environment(), device="cpu").learn(TOTAL, again)), expected)
    for one, other in zip(whole[0].callbacks, again[0].callbacks, strict=True):  # type: ignore[attr-defined]
        assert one.n_calls == other.n_calls
    assert whole[0].callbacks[0].evaluations_results == again[0].callbacks[0].evaluations_results  # type: ignore[attr-defined]
    assert whole[0].callbacks[1].last_time_trigger == again[0].callbacks[1].last_time_trigger  # type: ignore[attr-defined]


def test_rows_of_the_log_and_of_the_monitor(tmp_path: Path) -> None:
    """The next row of the log is whole, and a Monitor that appends has each episode once."""

    def monitored(folder: Path, **kwargs: Any) -> VecEnv:
        return environment(monitor_dir=str(folder), monitor_kwargs=kwargs)

    def episodes(folder: Path) -> list[tuple[str, str]]:
        files = [(folder / f"{index}.monitor.csv").read_text().splitlines()[1:] for index in range(2)]
        return [(row["r"], row["l"]) for lines in files for row in csv.DictReader(lines)]

    whole, stopped, checkpoints, total = tmp_path / "whole", tmp_path / "stopped", tmp_path / "checkpoints", 1600
    make("trpo", monitored(whole)).learn(total)
    # Pendulum's episodes have 200 steps: two of each environment end before the checkpoint, and one after it.
    first = TrainingCheckpoint(checkpoints, seconds=1e9)
    make("trpo", monitored(stopped)).learn(total, [first, Calls(lambda steps: first.stop() if steps == 960 else None)])
    with pytest.raises(Died):
        TRPO.resume(checkpoints, monitored(stopped, override_existing=False), device="cpu").learn(total, Dies(1300))
    assert len(episodes(stopped)) == 6

    model = TRPO.resume(checkpoints, monitored(stopped, override_existing=False), device="cpu")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(total)
    assert episodes(stopped) == episodes(whole)
    with (tmp_path / "progress.csv").open() as file:
        row = next(csv.DictReader(file))
    assert row["time/iterations"] == "16"
    assert row["train/value_loss"]


def test_stop(tmp_path: Path) -> None:
    """``stop`` ends learn() after the update, with a checkpoint from which the rest is done."""
    expected = ends_with(make("trpo", environment()).learn(TOTAL))
    checkpoint = TrainingCheckpoint(tmp_path, seconds=1e9)
    model = make("trpo", environment())
    model.learn(TOTAL, [checkpoint, Calls(lambda steps: checkpoint.stop() if steps == 130 else None)])
    assert model.num_timesteps == 192
    assert checkpoint.newest == tmp_path / "checkpoint_192_steps.zip"
    assert_equal(ends_with(TRPO.resume(checkpoint.newest, environment(), device="cpu").learn(TOTAL)), expected)


class Calls(BaseCallback):
    """Calls a function with the number of steps, after each."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        self.function(self.num_timesteps)
        return True


def test_stop_that_comes_before_the_training(tmp_path: Path) -> None:
    """While environments are made or reset, say: it holds for the next ``learn``, and for that one alone."""
    checkpoint = TrainingCheckpoint(tmp_path, seconds=1e9)
    model = make("trpo", environment())
    checkpoint.stop()
    assert checkpoint.newest is None
    assert model.learn(TOTAL, checkpoint).num_timesteps == 64
    resumed = TRPO.resume(tmp_path, environment(), device="cpu")
    assert resumed.learn(TOTAL, checkpoint).num_timesteps == TOTAL


def test_first_update_is_followed_by_a_checkpoint(tmp_path: Path) -> None:
    """However long it is to the next, so that a training that is killed early has one."""
    checkpoint = TrainingCheckpoint(tmp_path, keep=9, seconds=1e9)
    make("trpo", environment()).learn(TOTAL, checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_512_steps.zip", "checkpoint_64_steps.zip"]
    assert checkpoint.newest == tmp_path / "checkpoint_512_steps.zip"


def test_script_of_the_page_is_killed_before_its_first_checkpoint(tmp_path: Path) -> None:
    """The same script starts over, and one that is killed after its first checkpoint goes on."""
    page = Path(__file__).parents[2] / "docs" / "saving.md"
    script = page.read_text().split("```python\n")[1].split("```")[0]
    folder = tmp_path / "checkpoints"

    def killed_when(is_time: Any) -> None:
        with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) as process:
            while not is_time():
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)

    killed_when(folder.exists)
    assert list(folder.iterdir()) == []
    killed_when(lambda: any(folder.glob("*.zip")))
    begun = TrainingCheckpoint(folder).newest
    assert begun is not None
    # Its first share: 2048 steps of 8 environments.
    assert begun.name == "checkpoint_16384_steps.zip"
    subprocess.run([sys.executable, "-c", script.replace("100_000", "32_768")], cwd=tmp_path, check=True)
    assert [path.name for path in sorted(folder.iterdir())] == ["checkpoint_16384_steps.zip", "checkpoint_32768_steps.zip"]


def test_folder_of_a_run_and_id_of_an_environment(tmp_path: Path) -> None:
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, seed=0, device="cpu")
    model.learn(64, TrainingCheckpoint(tmp_path / "run" / "checkpoints"))
    resumed = TRPO.resume(tmp_path / "run", "CartPole-v1", device="cpu").learn(128)
    whole = TRPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, seed=0, device="cpu").learn(128)
    assert_equal(resumed.policy.state_dict(), whole.policy.state_dict())


def test_finished_training_does_nothing_more_and_goes_further(tmp_path: Path) -> None:
    make("trpo", environment()).learn(TOTAL, TrainingCheckpoint(tmp_path))
    model = TRPO.resume(tmp_path, environment(), device="cpu").learn(TOTAL)
    assert (model.num_timesteps, model._n_updates) == (TOTAL, TOTAL // 64)
    further = TRPO.resume(tmp_path, environment(), device="cpu").learn(TOTAL + 64, TrainingCheckpoint(tmp_path))
    assert (further.num_timesteps, further._total_timesteps) == (TOTAL + 64, TOTAL + 64)
    assert further.learn(64, reset_num_timesteps=False).num_timesteps == TOTAL + 128


def test_newest_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_9_steps.zip.tmp").write_bytes(b"of a process that was killed")
    make("trpo", environment()).learn(TOTAL, TrainingCheckpoint(tmp_path, keep=3, seconds=0))
    names = [f"checkpoint_{steps}_steps.zip" for steps in (384, 448, 512)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    with pytest.raises(ValueError, match=r"checkpoint_512_steps\.zip is of a training that was further .*TRPO\.resume"):
        make("trpo", environment()).learn(TOTAL, TrainingCheckpoint(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == names


class Lock(RandomEnv):
    """Has something that can't be saved."""

    def __init__(self) -> None:
        super().__init__(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)))
        self.lock = (each for each in ())


def test_environment_that_cannot_be_saved_is_reset(tmp_path: Path) -> None:
    """With a warning, new episodes, and none of the seeds that were used before."""
    model = TRPO("MlpPolicy", make_vec_env(Lock, 2, seed=0), n_steps=32, batch_size=32, seed=0, device="cpu")
    with pytest.warns(UserWarning, match="will reset its environments: .*lock of Lock, a generator") as caught:
        model.learn(TOTAL, TrainingCheckpoint(tmp_path, seconds=0))
    assert len([one for one in caught if "will reset" in str(one.message)]) == 1
    resets = []
    for _ in range(2):
        resumed = TRPO.resume(tmp_path, make_vec_env(Lock, 2, seed=0), device="cpu").learn(TOTAL)
        resets.append(resumed._last_obs)
        assert resumed.num_timesteps == TOTAL
    fresh = TRPO("MlpPolicy", make_vec_env(Lock, 2, seed=0), seed=0).env.reset()
    assert np.array_equal(resets[0], resets[1])
    assert not np.isin(fresh, resets[0]).any()


def test_full_disk_does_not_end_the_training(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    checkpoint = TrainingCheckpoint(folder, seconds=0)
    model = make("trpo", environment())
    removes = Calls(lambda steps: folder.rmdir() if steps == 2 else None)
    with pytest.warns(UserWarning, match="The training goes on without a checkpoint after 64 steps: .*No such file"):
        model.learn(TOTAL, [checkpoint, removes])
    assert model.num_timesteps == TOTAL


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        TRPO.resume(tmp_path, environment())
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        TRPO.resume(tmp_path / "nothing", environment())
    make("trpo", environment()).learn(64, TrainingCheckpoint(tmp_path))
    with pytest.raises(ValueError, match="is of a TRPO, which NPG can't resume"):
        NPG.resume(tmp_path, environment())
    each = r"the first <Restorable<Monitor<.*Time.*PendulumEnv<Pendulum-v1.*"
    words = (
        rf"of 2 environments in VecNormalize of DummyVecEnv, {each}, and env has 3 environments in DummyVecEnv, the first <"
    )
    with pytest.raises(ValueError, match=words):
        TRPO.resume(tmp_path, make_vec_env("Pendulum-v1", 3))
    other_spaces = VecNormalize(make_vec_env("Pendulum-v1", 2, wrapper_class=lambda env: RescaleAction(env, -1.0, 1.0)))
    with pytest.raises(ValueError, match=rf"Action spaces do not match.* {each}, and env has 2 .*<RescaleAction<"):
        TRPO.resume(tmp_path, other_spaces)
    model_file = tmp_path / "model.zip"
    make("trpo", environment()).save(model_file)
    with pytest.raises(ValueError, match=r"model\.zip is no whole checkpoint"):
        TRPO.resume(model_file, environment())
    file = tmp_path / "checkpoint_64_steps.zip"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"checkpoint_64_steps\.zip is no whole checkpoint"):
        TRPO.resume(tmp_path, environment())
    with pytest.raises(TypeError, match="PPO is not of its algorithms"):
        PPO("MlpPolicy", "Pendulum-v1").learn(64, TrainingCheckpoint(tmp_path))
    for argument in ({"keep": 0}, {"seconds": -1.0}, {"seconds": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(argument))):
            TrainingCheckpoint(tmp_path, **argument)  # type: ignore[arg-type]


def test_loaded_model_draws_other_noise(tmp_path: Path) -> None:
    """A seeded model that goes on after a plain load does not repeat the noise of its beginning."""

    class Noise(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.drawn: list[Any] = []

        def _on_step(self) -> bool:
            means = self.model.policy.get_distribution(self.locals["obs_tensor"]).mode()  # type: ignore[union-attr]
            self.drawn.append((th.as_tensor(self.locals["actions"]) - means.detach()).flatten().numpy())
            return True

    first, second, third = Noise(), Noise(), Noise()
    make("trpo", environment()).learn(TOTAL, first).save(tmp_path / "model")
    for noise in (second, third):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = TRPO.load(tmp_path / "model", environment(), device="cpu")
        model.learn(TOTAL, noise, reset_num_timesteps=False)
    correlation = np.corrcoef(np.ravel(first.drawn), np.ravel(second.drawn))[0, 1]
    # Of independent noise, four standard deviations.
    assert abs(correlation) < 4 / np.sqrt(TOTAL)
    assert np.array_equal(second.drawn, third.drawn)


def test_model_without_its_statistics_says_so(tmp_path: Path) -> None:
    env = environment()
    model = make("trpo", env).learn(64)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "statistics.pkl"))  # type: ignore[attr-defined]
    plain = make_vec_env("Pendulum-v1", 2)
    with pytest.warns(UserWarning, match="env does not normalise them: wrap it by load_vec_normalize"):
        TRPO.load(tmp_path / "model", plain)
    with pytest.warns(UserWarning, match="has no statistics yet"):
        TRPO.load(tmp_path / "model", environment())
    with pytest.warns(UserWarning, match="env does not normalise them"):
        model.set_env(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TRPO.load(tmp_path / "model")
        TRPO.load(tmp_path / "model", VecNormalize.load(str(tmp_path / "statistics.pkl"), plain))
        only_rewards = make("trpo", VecNormalize(make_vec_env("Pendulum-v1", 2), norm_obs=False)).learn(64)
        only_rewards.save(tmp_path / "rewards")
        TRPO.load(tmp_path / "rewards", plain)
    assert json.loads(json.dumps(model.observations_normalized)) is True
