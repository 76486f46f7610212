"""A model built anew, with some of its layers replaced."""
