"""What goes wrong with a file that someone else may have made."""


class ModelFileError(ValueError):
    """A model or statistics file is damaged, is something else, or holds what this package does not read."""


class UnsafeFileError(ModelFileError):
    """A file holds something that is not data: opened by SB3, it could run code, or would need code that is not listed."""
