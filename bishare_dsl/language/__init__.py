"""The `.share` language: text to `Spec` and back, formatting, and every mistake at its place."""

from typing import TYPE_CHECKING, Any

from bishare_dsl.language.read import parse_spec, parse_syntax, read, read_file

if TYPE_CHECKING:
    from bishare_dsl.language.format import format_text
    from bishare_dsl.language.text import spec_text

__all__ = [
    "format_text",
    "parse_spec",
    "parse_syntax",
    "read",
    "read_file",
    "spec_text",
]


def __getattr__(name: str) -> Any:
    # `bishare check` needs neither.
    if name == "format_text":
        from bishare_dsl.language.format import format_text

        return format_text
    if name == "spec_text":
        from bishare_dsl.language.text import spec_text

        return spec_text
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
