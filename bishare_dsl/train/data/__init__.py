"""Training data: read, checked row by row, encoded with the loss where it belongs, packed, collated."""
