"""The version of bishare."""

__version__ = "0.6.0"
