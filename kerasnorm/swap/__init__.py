"""`swap_norms`, `inspect_norms` and `fold_norms`: decide, carry out, fit, compare, report."""
