"""Syntax colours for specs, derived from the parser's grammar."""
