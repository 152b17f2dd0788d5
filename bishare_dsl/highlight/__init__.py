"""Colours for specs in editors and on pages, from the grammar that the parser has."""
