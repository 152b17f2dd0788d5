"""The meaning of each word of the language, in a line."""

from __future__ import annotations

from bishare_dsl.resources import table

MEANINGS = dict(table("meanings.txt"))
"""Of each keyword, attribute of a site, function and start, by its spelling."""
