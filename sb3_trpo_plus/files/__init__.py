"""Reading saved models and normalisation statistics, also those of Gym's years."""
