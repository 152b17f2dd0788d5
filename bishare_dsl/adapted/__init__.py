"""An adapter in a model: the handle `model.bishare`, and merging it into the weights."""
