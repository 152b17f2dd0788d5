"""A vLLM plug-in that serves many adapters. `bishare_dsl.batched` does the arithmetic."""
