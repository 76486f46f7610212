"""A read-only view of a Keras model: its graphs, its BatchNorm calls, running it part by part."""
