"""Regions as graphs: trace a parent module, transform the graph, install the result."""
