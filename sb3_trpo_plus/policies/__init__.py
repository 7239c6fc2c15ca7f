"""What the trust region needs of an SB3 policy: distributions, actor parameters, Fisher products, closed forms."""
