"""The algorithms that users name."""
