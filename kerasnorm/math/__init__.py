"""Pure functions on tensors: normalize, sums, norms, gradients."""
