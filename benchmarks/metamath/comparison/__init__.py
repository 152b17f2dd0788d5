"""PEFT's comparison of methods on MetaMathQA, extended by bishare's specs."""
