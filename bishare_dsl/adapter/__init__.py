"""Adapters: initial values, folders, merging, and the handle in a model.

`files` reads and writes without torch, so that `bishare inspect` starts quickly.
"""
