"""Evaluate adapters on tasks of lm-evaluation-harness."""
