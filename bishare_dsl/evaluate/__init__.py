"""Evaluate adapters and their base on tasks of lm-evaluation-harness."""
