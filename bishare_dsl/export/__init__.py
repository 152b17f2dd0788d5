"""Export adapters to programs that support only plain LoRA."""

FORMATS = ("peft", "gguf", "mlx")
EXPERTS = ("fused", "each", "shared-outer")
"""Layouts for experts: PEFT's, one module per expert, or one shared factor if all experts have it in
common.
"""

DTYPES = ("float32", "bfloat16", "float16")

TARGETS = ("peft", "vllm", "sglang", "mlx", "gguf")
"""The layouts that can be written: rows of `bishare_dsl.export.layouts`."""
