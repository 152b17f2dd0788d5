"""Export adapters to programs that support only plain LoRA."""

FORMATS = ("peft", "gguf", "mlx")
EXPERTS = ("fused", "each", "shared-outer")
"""Layouts for experts: PEFT's, a module per expert, or one outer factor if it is equal for all."""

DTYPES = ("float32", "bfloat16", "float16")

TARGETS = ("peft", "vllm", "sglang", "mlx", "gguf")
"""The layouts that can be written: rows of `bishare_dsl.export.layouts`."""
