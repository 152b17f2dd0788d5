"""Adapters and their base on tasks of lm-evaluation-harness, side by side."""
