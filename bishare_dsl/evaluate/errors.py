"""The exception of this package."""

from bishare_dsl.diagnostics import BishareError


class EvaluateError(BishareError):
    """A model cannot be evaluated, or cannot generate (BS8xx)."""
