"""The quality benchmark's parts: data, methods, one run, the search of a learning rate, and the report."""
