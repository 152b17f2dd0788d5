"""Training data: read, check, encode with a loss mask, pack and collate."""
