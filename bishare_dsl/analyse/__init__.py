"""Measure what the updates of adapters have in common.

No update dW (d_out, d_in) is ever expanded: every measure is computed from its few singular vectors
(`update`) and from matrices of rank by rank.
"""
