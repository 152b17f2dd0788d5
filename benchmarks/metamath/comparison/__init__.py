"""PEFT's comparison of methods on MetaMathQA, with bishare's specs as further methods."""
