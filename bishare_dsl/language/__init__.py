"""The `.share` language: text to `Spec` and back, formatting, and every mistake at its place."""

from bishare_dsl.language.read import parse_spec, parse_syntax, read, read_file

__all__ = [
    "parse_spec",
    "parse_syntax",
    "read",
    "read_file",
]
