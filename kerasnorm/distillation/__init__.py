"""Training a student to answer as its teacher, for `distill` and after the fits."""
