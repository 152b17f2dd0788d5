"""Models as the compiler sees them: sites, presets, inspection and loading."""

from bishare_dsl.models.site import Architecture, Site

__all__ = ["Architecture", "Site"]
