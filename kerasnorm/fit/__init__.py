"""Closed-form fits on unlabeled data: reading it, splitting it, im2col, regression."""
