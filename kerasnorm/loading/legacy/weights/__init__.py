"""Weights of old files: which variable each belongs to, and in which layout it was stored."""
