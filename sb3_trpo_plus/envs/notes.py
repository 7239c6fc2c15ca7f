"""Where an exception comes from, beside what it says itself."""


def add_note(error: Exception, note: str) -> None:
    """
    :param error: stays the same to those who catch it
    :param note: is printed below its message; before Python 3.11, which has no notes, it becomes part of a plain message
    """
    if hasattr(error, "add_note"):
        error.add_note(note)
    elif len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}. {note}",)
