"""Serving adapters: many of them beside one base."""
