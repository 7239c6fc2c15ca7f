"""Collection of rollouts, and the samples that the policy update takes from them."""
