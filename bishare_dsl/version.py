"""The version of bishare."""

__version__ = "0.4.0"
