"""Reading saved files."""
