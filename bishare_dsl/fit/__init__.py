"""Fit a spec to trained LoRAs: find the nearest adapter."""
