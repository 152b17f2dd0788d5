"""The version of bishare."""

__version__ = "0.5.0"
