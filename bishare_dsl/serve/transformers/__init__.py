"""Many adapters in one model of transformers: switching between them, and batches in which rows differ."""
