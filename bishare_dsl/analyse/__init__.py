"""What adapters have in common, measured from their small factors; and the spec that follows.

An update dW (d_out, d_in) is never made: it is its few singular vectors (`update`), and all else follows from
those, and from matrices of rank by rank.
"""
