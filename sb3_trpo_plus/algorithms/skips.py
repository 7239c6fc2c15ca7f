"""Updates that were skipped: counted by cause, and told aloud as long as they go on."""

import warnings


class Skips:
    """The skipped updates of a model in this process."""

    def __init__(self) -> None:
        #: How many there were of each cause
        self.counts: dict[str, int] = {}
        self._in_a_row: dict[str, int] = {}
        self._since_last_update: set[str] = set()

    def add(self, cause: str, sentence: str) -> None:
        """
        Count one, and warn at the first, second, fourth, eighth ... in a row.

        :param cause: one word
        :param sentence: what was skipped, and why
        """
        self.counts[cause] = self.counts.get(cause, 0) + 1
        in_a_row = self._in_a_row[cause] = self._in_a_row.get(cause, 0) + 1
        self._since_last_update.add(cause)
        if in_a_row & (in_a_row - 1) == 0:
            # Python shows a warning's text once: the number makes each of them another one.
            warnings.warn(sentence if in_a_row == 1 else f"{sentence} ({in_a_row} times in a row)", stacklevel=3)

    def begin_update(self) -> None:
        """Forget the rows of what was not skipped in the last update."""
        self._in_a_row = {cause: n for cause, n in self._in_a_row.items() if cause in self._since_last_update}
        self._since_last_update = set()
