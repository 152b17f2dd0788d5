"""Who would share with whom under a key of the language: the compiler itself says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from bishare_dsl.export.from_peft import selection_of
from bishare_dsl.language import parse_spec
from bishare_dsl.models.site import Architecture, Site
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.spec import Selection, Share


class PoolsByKey:
    """Groups the modules that are adapted by the keys of shares."""

    def __init__(self, architecture: Architecture, sites: Sequence[Site]):
        self.architecture, self.sites = architecture, tuple(sites)

    @cached_property
    def target(self) -> Selection:
        """What selects these modules and no others."""
        return Selection(include=selection_of(self.sites, self.architecture))

    def plan(self, share: Share) -> Plan:
        """Return the plan of a share alone, on all of the modules."""
        spec = parse_spec("spec one  target all  share one  per model  rank 1")
        spec = spec.model_copy(update={"target": self.target, "shares": (share,)})
        return build_plan(spec, self.architecture)[0]

    def pools(self, share: Share, role: str) -> list[tuple[str, ...]]:
        """Return the paths of the modules that use one tensor of a role, for each such tensor."""
        return [pool.members for pool in self.plan(share).pools if pool.role == role]


def share_of(statement: str) -> Share:
    """Read a share from its text, ``share x  per layer  rank 1``."""
    return parse_spec(f"spec one  target all  {statement}").shares[0]
