"""Training data: from a file or a Hub data set to batches of tokens."""
