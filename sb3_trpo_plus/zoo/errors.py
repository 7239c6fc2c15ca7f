"""The error of a training that can't be had as it was asked for."""


class SettingsError(ValueError):
    """What a command line or a file asks of a training can't be had; the message says why, in a line, and what to do."""
