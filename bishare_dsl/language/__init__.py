"""The `.share` language: parse, print and format specs, and locate every mistake."""

from bishare_dsl.language.format import format_text
from bishare_dsl.language.read import parse_spec, parse_syntax, read, read_file
from bishare_dsl.language.text import own_text, spec_text
