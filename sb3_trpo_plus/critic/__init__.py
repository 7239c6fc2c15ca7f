"""The value regression."""
