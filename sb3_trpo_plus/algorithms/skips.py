"""Counts of skipped updates by cause, with warnings that become rarer while they continue."""

import warnings


class Skips:
    """The skipped updates of a model in this process."""

    def __init__(self) -> None:
        #: Number of skipped updates by cause
        self.counts: dict[str, int] = {}
        self._in_a_row: dict[str, int] = {}
        self._since_last_update: set[str] = set()

    def add(self, cause: str, sentence: str) -> None:
        """
        Count a skipped update, and warn if it is the first, second, fourth, eighth ... in a row with this cause.

        :param cause: one word
        :param sentence: what was skipped, and why
        """
        total = self.counts[cause] = self.counts.get(cause, 0) + 1
        in_a_row = self._in_a_row[cause] = self._in_a_row.get(cause, 0) + 1
        self._since_last_update.add(cause)
        if in_a_row & (in_a_row - 1) == 0:
            # Python shows a repeated warning only once, unless its text differs.
            times = f" ({in_a_row} times in a row)" if in_a_row > 1 else f" ({total} times so far)" if total > 1 else ""
            warnings.warn(sentence + times, stacklevel=3)

    def begin_update(self) -> None:
        """To be called before each update: ends the row of every cause for which the previous update was not skipped."""
        self._in_a_row = {cause: n for cause, n in self._in_a_row.items() if cause in self._since_last_update}
        self._since_last_update = set()
