"""Convert adapters to and from the plain LoRA of other programs."""

DTYPES = ("float32", "bfloat16", "float16")

TARGETS = ("peft", "vllm", "sglang", "mlx", "gguf")
"""The layouts that can be written: rows of `bishare_dsl.export.layouts`."""
