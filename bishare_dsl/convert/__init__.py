"""Convert adapters to and from the plain LoRA of other programs."""

DTYPES = ("float32", "bfloat16", "float16")

TARGETS = ("peft", "vllm", "sglang", "gguf")
"""The layouts: rows of `bishare_dsl.convert.layouts`."""
