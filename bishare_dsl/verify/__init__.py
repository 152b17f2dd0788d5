"""Is an adapter applied? What its files, a model's names and a running server's answers say."""

ENGINES = ("vllm", "sglang", "llama.cpp", "mlx")
"""The engines of `engines.toml`."""
