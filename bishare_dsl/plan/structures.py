"""Shapes of matrices that can have a structure, for initial values."""

from __future__ import annotations


def why_no_structure(word: str, rows: int, columns: int) -> str | None:
    """Explain why a matrix of this shape cannot have a structure; None if it can."""
    if word == "cosine" and rows > columns:
        return f"there are {columns} cosines of that width, and it has {rows} rows"
    most = power_of_two(columns)
    if word == "hadamard" and rows > most:
        return f"a Hadamard matrix of that width has {most} rows, and it has {rows}"
    return None


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()
