"""Mixed batches: one call of a model in which each row has an adapter of its own."""
