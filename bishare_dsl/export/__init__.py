"""Exports: an adapter in the forms of programs that know only plain LoRA."""

FORMATS = ("peft", "gguf")
DTYPES = ("float32", "bfloat16", "float16")
