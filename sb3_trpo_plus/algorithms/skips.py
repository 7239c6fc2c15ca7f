"""Counts of skipped updates by cause, and of what goes on, with warnings that become rarer while they continue."""

import warnings

# Updates in a row before something is told that is normal in a single one.
PATIENCE = 10


class Skips:
    """The skipped updates of a model in this process."""

    def __init__(self) -> None:
        #: Number of skipped updates by cause
        self.counts: dict[str, int] = {}
        self._in_a_row: dict[str, int] = {}
        self._going_on: dict[str, int] = {}
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

    def goes_on(self, condition: str, holds: bool, sentence: str) -> None:
        """
        To be called once an update: warn if a condition holds in the tenth, twentieth, fortieth, eightieth ... in a row.

        :param condition: one word
        :param holds: whether it does in this update
        :param sentence: what it is, and why
        """
        in_a_row = self._going_on[condition] = self._going_on.get(condition, 0) + 1 if holds else 0
        tens, ones = divmod(in_a_row, PATIENCE)
        if tens and not ones and tens & (tens - 1) == 0:
            warnings.warn(f"{sentence} ({in_a_row} updates in a row)", stacklevel=3)

    def begin_update(self) -> None:
        """To be called before each update: ends the row of every cause for which the previous update was not skipped."""
        self._in_a_row = {cause: n for cause, n in self._in_a_row.items() if cause in self._since_last_update}
        self._since_last_update = set()
