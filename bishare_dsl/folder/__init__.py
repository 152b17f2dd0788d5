"""An adapter on disk: its configuration, tensors, digests and card, read and written whole.

`files` reads and writes without torch, so that `bishare inspect` starts quickly.
"""
