"""Strategies and tiny models that the tests use, and users may too."""
