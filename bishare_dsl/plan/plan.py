"""The plan: all tensors, pools and terms of an adapter, as data that converts to JSON and back.

The plan is the single source of truth. Counts, tables, initialisation, rewriting, saving, loading,
merging and export read it and recompute nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cached_property
from math import prod
from typing import Any, Literal

from bishare_dsl.models.site import Architecture, Data, Site
from bishare_dsl.plan.names import start_name
from bishare_dsl.spec.expression import EACH_ADAPTER
from bishare_dsl.spec.spec import MAGNITUDE, SINGULAR, Initial


class Tensor(Data):
    """One tensor of the adapter, stored rank-major: ``shape`` is ``(rows, columns)``.

    ``owner`` is the path of the module that holds it, the nearest that contains all of its sites: their
    parent, their block, or ``""`` for the model. A tensor trained in full starts with the values of the
    parameter ``base``. A tensor to be subtracted keeps the initial values of the tensor ``like``.
    """

    name: str
    share: str
    shape: tuple[int, int]
    init: Literal[Initial, "base"]
    amount: float = 1.0
    fan_in: int
    trainable: bool = True
    owner: str
    like: str | None = None

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def role(self) -> str:
        """The role that its share gives it; a reference may use it in another."""
        return self.name.rpartition(".")[2]

    @property
    def drawn(self) -> bool:
        """Whether the seed determines the initial values, and not the base."""
        return self.init != "base" and self.init not in SINGULAR


class Trained(Data):
    """A parameter of the base that is trained in full, and replaced by ``tensor`` in its ``shape``.

    ``parameter`` is its path in the model, and ``tied`` lists its other names.
    """

    parameter: str
    tied: tuple[str, ...] = ()
    shape: tuple[int, ...]
    tensor: str

    @property
    def paths(self) -> tuple[str, ...]:
        """All names of the parameter."""
        return (self.parameter, *self.tied)


class Pool(Data):
    """The sites that use one shared tensor: one distinct value of a share's key.

    ``role`` is the tensor's: A, B, or another that the transform pools, such as a vector bank.
    """

    share: str
    role: str
    key: tuple[str | int | float | bool, ...]
    tensor: str
    members: tuple[str, ...]


class Term(Data):
    """A share at a site: ``scale * B^T A``, with effective factors of ``rows`` rows.

    ``tensors`` maps roles to the tensors that the transform reads: the pooled tensors of declared rank
    ``rank``, private kernels or gates, and gains. If the update is not a matrix, ``linear`` is false,
    there are no effective factors, and ``rows`` is 0.
    """

    share: str
    site: str
    transform: str
    options: dict[str, Any]
    rank: int
    rows: int
    scale: float
    dropout: float
    linear: bool = True
    tensors: dict[str, str]

    @property
    def is_magnitude(self) -> bool:
        """Whether it scales the site's output, including all terms, instead of adding a term."""
        return self.transform == MAGNITUDE


class Plan(Data):
    """A spec resolved against a model."""

    version: Literal[1] = 1
    spec: str
    params: dict[str, int | float | str]
    base: Architecture
    sites: tuple[Site, ...]
    tensors: tuple[Tensor, ...]
    pools: tuple[Pool, ...]
    terms: tuple[Term, ...]
    trained: tuple[Trained, ...] = ()

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the adapter's computation, independent of the base's name."""
        tensors = [(t.name, t.shape, t.init, t.amount, t.fan_in, t.trainable) for t in self.tensors]
        terms = [
            (t.share, t.site, t.tensors, t.transform, t.options, t.rank, t.scale, t.dropout)
            for t in self.terms
        ]
        trained = [(t.parameter, t.tied, t.tensor) for t in self.trained]
        content = (tensors, terms, trained) if trained else (tensors, terms)
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def __repr__(self) -> str:
        adapted = sum(1 for terms in self.terms_of.values() if terms)
        return (
            f"<Plan {self.spec} on {self.base.name}: {adapted:,} modules, "
            f"{self.trainable:,} trainable parameters>"
        )

    __str__ = __repr__

    @property
    def trainable(self) -> int:
        """Trainable parameters, each tensor counted once."""
        return sum(tensor.size for tensor in self.tensors if tensor.trainable)

    @property
    def frozen(self) -> int:
        """Parameters of the adapter that keep their initial values, each tensor counted once."""
        return sum(tensor.size for tensor in self.tensors if not tensor.trainable)

    @property
    def stored(self) -> int:
        """Parameters in the adapter's file, without frozen tensors that the seed regenerates."""
        in_file = (tensor for tensor in self.tensors if tensor.trainable or not tensor.drawn)
        return sum(tensor.size for tensor in in_file)

    @property
    def all(self) -> int:
        """All parameters, of the base and of the adapter."""
        return self.base.parameters + sum(tensor.size for tensor in self.tensors)

    @cached_property
    def tensor(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}

    @cached_property
    def common(self) -> frozenset[str]:
        """The names of the tensors that all adapters of a library share.

        They belong to pools whose key does not name ``adapter``; private tensors of a site belong to
        each adapter. Frozen tensors come from the seed or the base, and are equal in all.
        """
        frozen = frozenset(tensor.name for tensor in self.tensors if not tensor.trainable)
        return frozen.union(pool.tensor for pool in self.pools if EACH_ADAPTER not in pool.key)

    @cached_property
    def is_library(self) -> bool:
        """Whether a key names ``adapter``, so that many adapters share the other tensors."""
        return any(EACH_ADAPTER in pool.key for pool in self.pools)

    @cached_property
    def terms_of(self) -> dict[str, tuple[Term, ...]]:
        """The terms of each site, by its path. A magnitude comes last."""
        by_site: dict[str, list[Term]] = {site.path: [] for site in self.sites}
        for term in self.terms:
            by_site[term.site].append(term)
        return {path: tuple(terms) for path, terms in by_site.items()}

    @property
    def update_terms(self) -> list[Term]:
        """All terms except magnitudes, for code that applies these separately."""
        return [term for term in self.terms if not term.is_magnitude]

    @property
    def has_magnitudes(self) -> bool:
        """Whether it scales outputs, so that updates depend on the base's weights."""
        return any(term.is_magnitude for term in self.terms)

    @cached_property
    def first_site(self) -> dict[str, str]:
        """The path of the first site that uses each tensor, by the tensor's name."""
        terms = [term for terms in self.terms_of.values() for term in terms]
        return {name: term.site for term in reversed(terms) for name in term.tensors.values()}

    @cached_property
    def references(self) -> dict[tuple[str, str], tuple[str, str]]:
        """The share and the role whose tensors each reference takes, by its share and role."""
        references: dict[tuple[str, str], tuple[str, str]] = {}
        for term in self.terms:
            for role, name in term.tensors.items():
                tensor = self.tensor[name]
                place = (term.share, role)
                owner = (tensor.share, tensor.role)
                # A term that subtracts initial values uses the frozen tensors of its share.
                if place != owner and tensor.like is None and term.share != start_name(owner[0]):
                    references[place] = owner
        return references

    @cached_property
    def users(self) -> Counter[str]:
        """The number of modules that use each tensor, of which one may have several terms."""
        used = ({n for t in terms for n in t.tensors.values()} for terms in self.terms_of.values())
        return Counter(name for names in used for name in names)

    @cached_property
    def shares(self) -> dict[str, int]:
        """Trainable parameters of each share."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors:
            counts[tensor.share] += tensor.size if tensor.trainable else 0
        # What subtracts frozen tensors alone has none of its own.
        return {**counts, **{term.share: 0 for term in self.terms if term.share not in counts}}

    def runs_as(self, other: Plan) -> bool:
        """Return whether another plan for the same model computes the same, independent of names."""
        if self is other:
            return True
        same_tensors = self.tensors == other.tensors and self.trained == other.trained
        return same_tensors and self.terms == other.terms

    def magnitude(self, path: str) -> Term | None:
        """Return what scales the output of a site; None where nothing does."""
        return next((term for term in self.terms_of[path] if term.is_magnitude), None)

    def rows(self, path: str) -> int:
        """Count the rows of a site's effective factors over all terms, which is its rank as plain LoRA."""
        return sum(term.rows for term in self.terms_of[path])

    @property
    def private(self) -> int:
        """How many parameters each adapter of a library has for itself."""
        return sum(tensor.size for tensor in self.tensors if tensor.name not in self.common)

    @property
    def owned(self) -> str:
        """What each adapter of a library owns, and what all of them share."""
        return f"{self.private:,} private, {self.trainable - self.private:,} shared"

    @property
    def parameters_line(self) -> str:
        """The line about trainable parameters that PEFT prints."""
        return (
            f"trainable params: {self.trainable:,} || all params: {self.all:,} || "
            f"trainable%: {100 * self.trainable / self.all:.4f}"
        )
