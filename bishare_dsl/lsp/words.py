"""What the words of the language mean, in a line each, for whoever points at one."""

from __future__ import annotations

from bishare_dsl.resources import table

MEANINGS = dict(table("meanings.txt"))
"""Of each keyword, attribute of a site, function and start, by its spelling."""
