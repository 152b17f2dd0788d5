"""Benchmarks on one GPU: steps, memory, decoding, `torch.compile` and mixed batches; `run.py` runs all."""
