"""Measure how many bits of random pairs a topology stores: bases, pairs, methods, passes and tables."""
