"""Saving and restoring the states of environments, and wrappers."""
