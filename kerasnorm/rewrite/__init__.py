"""Reading a model's graph, deciding what to change, and building the changed model."""
