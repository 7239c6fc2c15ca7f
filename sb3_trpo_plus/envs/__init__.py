"""Environments: their states, and wrappers."""
