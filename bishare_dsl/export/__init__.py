"""Exports: an adapter in the forms of programs that know only plain LoRA."""
