"""From an SB3 policy to the mathematics: its distributions, its actor, its Fisher products, and whether it is plain."""
