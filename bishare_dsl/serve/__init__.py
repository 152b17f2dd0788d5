"""Serving many adapters by an engine: a plug-in of vLLM. The arithmetic is in `bishare_dsl.batched`."""
