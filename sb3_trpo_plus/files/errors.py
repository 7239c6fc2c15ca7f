"""What goes wrong with a file that someone else may have made."""


class ModelFileError(ValueError):
    """
    A model or statistics file is damaged, is something else, or holds what this package does not read.

    :param found: what is wrong, a sentence without its full stop
    :param ways: what a caller in Python can do, in sentences; the commands say what a command line can
    """

    def __init__(self, found: str, ways: str = "") -> None:
        super().__init__(f"{found}. {ways}" if ways else found)
        self.found, self.ways = found, ways


class UnsafeFileError(ModelFileError):
    """A file holds something that is not data: opened by SB3, it could run code, or would need code that is not listed."""
