"""One-line meanings of the language's words."""

from __future__ import annotations

from bishare_dsl.resources import table

MEANINGS = dict(table("meanings.txt"))
"""Meanings of keywords, attributes of sites, functions and initial values, by spelling."""
