"""The version of bishare."""

__version__ = "0.3.0"
