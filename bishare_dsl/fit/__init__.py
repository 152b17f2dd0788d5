"""Fit: the adapter of a spec that comes nearest to LoRAs that are trained already."""
