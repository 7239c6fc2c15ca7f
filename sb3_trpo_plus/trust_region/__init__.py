"""The mathematics of the trust-region step: tensors and callables in, tensors and a record out."""
