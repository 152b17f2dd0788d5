"""Exports: an adapter in the forms of programs that know only plain LoRA."""

FORMATS = ("peft", "gguf", "mlx")
EXPERTS = ("fused", "each", "shared-outer")
"""How a folder has experts: as PEFT does, expert by expert, or with one factor for all where that is so."""

DTYPES = ("float32", "bfloat16", "float16")

TARGETS = ("peft", "vllm", "sglang", "mlx", "gguf")
"""The layouts that are written: rows of `bishare_dsl.export.layouts`."""
