"""The parts of the quality benchmark: data, methods, single runs, learning rate search and report."""
