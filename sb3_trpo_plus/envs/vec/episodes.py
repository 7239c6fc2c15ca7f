"""Returns, lengths and times of episodes, in arrays over the environments."""

import time
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.monitor import ResultsWriter


class Episodes:
    """
    What ``Monitor`` keeps of one environment, of many at once.

    :param n_envs: number of environments
    :param file: where to write the finished episodes, as ``Monitor`` does; None: nowhere
    :param env_id: for the file's first line

    ``returns`` (float64) and ``lengths`` are those of the episodes that run, up to now.
    """

    def __init__(self, n_envs: int, file: str | None = None, env_id: str | None = None) -> None:
        self.returns = np.zeros(n_envs)
        self.lengths = np.zeros(n_envs, np.int64)
        self._began = time.time()
        self._writer = file and ResultsWriter(file, header={"t_start": self._began, "env_id": str(env_id)})

    def begin(self) -> None:
        """Every environment was reset."""
        self.returns[:] = 0
        self.lengths[:] = 0

    def add(self, rewards: npt.NDArray[Any]) -> None:
        """
        :param rewards: of a step of every environment
        """
        self.returns += rewards
        self.lengths += 1

    def end(self, indices: npt.NDArray[np.intp]) -> list[dict[str, Any]]:
        """
        The episodes of these environments ended, and their next ones begin.

        :param indices: of the environments
        :return: the statistics of each as ``Monitor`` rounds them: return r, length l, and t, the seconds since the start
        """
        now = round(time.time() - self._began, 6)
        totals = zip(self.returns[indices].tolist(), self.lengths[indices].tolist(), strict=True)
        ended = [{"r": round(total, 6), "l": length, "t": now} for total, length in totals]
        self.returns[indices] = 0
        self.lengths[indices] = 0
        if self._writer:
            for episode in ended:
                self._writer.write_row(episode)
        return ended

    def close(self) -> None:
        """Close the file."""
        if self._writer:
            self._writer.close()
