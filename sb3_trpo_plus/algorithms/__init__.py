"""The algorithms: TRPO, NPG, VineTRPO and PPOPenalty."""
