"""Adapters: first values, the folder they are saved in, merging, and the handle in a model.

`files` reads and writes without torch, so that `bishare inspect` answers at once.
"""
