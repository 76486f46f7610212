"""One family of rules for each target: the algebra on top, then the code."""
