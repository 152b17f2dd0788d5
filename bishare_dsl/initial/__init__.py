"""Initial values of an adapter's tensors, each from the seed and its name, or from the base's weights."""
