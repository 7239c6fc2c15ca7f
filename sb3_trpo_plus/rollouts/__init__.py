"""Collection of experience, and what of it an update uses."""
