"""Steps, memory, decoding, `torch.compile` and mixed batches on one GPU; `run.py` runs them all."""
