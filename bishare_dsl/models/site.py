"""Where a model's linear layers are: pure data, no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt


class Site(BaseModel):
    """One linear layer inside a block of a model: a place where a share can add a term.

    ``path`` is the module's name in the model, ``layer`` the index of its block, ``kind`` its own
    name (``q_proj``) and ``parent`` the name of its nearest ancestor that is not a number
    (``self_attn``). It maps ``d_in`` features to ``d_out``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    layer: NonNegativeInt
    kind: str
    parent: str
    d_in: PositiveInt
    d_out: PositiveInt

    @classmethod
    def at(cls, path: str, d_in: int, d_out: int) -> Site | None:
        """The site at a module path, or None where the path has no block index."""
        *ancestors, kind = path.split(".")
        layer = next((int(part) for part in ancestors if part.isdecimal()), None)
        if layer is None:
            return None
        parent = next((part for part in reversed(ancestors) if not part.isdecimal()), "")
        return cls(path=path, layer=layer, kind=kind, parent=parent, d_in=d_in, d_out=d_out)


class Architecture(BaseModel):
    """The shapes of a causal language model: all that planning an adapter needs to know of it.

    ``name`` is what the user called it, ``family`` the ``model_type`` of its config, ``model_id``
    its id on the Hub where it has one, ``layers`` the number of blocks and ``parameters`` the
    number of base parameters, a tied tensor counted once. ``sites`` are in the model's own order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    model_id: str | None = None
    layers: PositiveInt
    parameters: PositiveInt
    sites: tuple[Site, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The distinct kinds of the sites, in the model's order."""
        return tuple(dict.fromkeys(site.kind for site in self.sites))
