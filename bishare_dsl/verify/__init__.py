"""Check that an adapter is applied, by its files, a model's module names and a server's answers."""

ENGINES = ("vllm", "sglang", "llama.cpp", "mlx")
"""The engines in `engines.toml`."""
