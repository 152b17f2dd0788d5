"""The plan of a stored adapter, rebuilt from its spec and the shapes of its base."""

from __future__ import annotations

from functools import lru_cache

from bishare_dsl.adapter.config import AdapterConfig
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.language import read
from bishare_dsl.models.site import Architecture
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.spec import MAGNITUDE, Spec
from bishare_dsl.transforms.registry import package_version, transform_names


def check_transforms(config: AdapterConfig) -> int:
    """Check that an adapter's transforms are installed, and return the number of shares in its spec.

    Raises:
        BishareError: the spec is invalid, or a transform is not installed (BS619).
    """
    spec = _spec_of(config.spec)
    used = {share.via.transform for share in spec.shares if share.via is not None}
    for name in sorted(used - {*transform_names(), MAGNITUDE}):
        help = "import what registers it first, or name its file, if it is yours, by `--spec-transform`"
        if package := config.packages.get(name):
            help = f"install what it was saved with: {package}"
        raise AdapterError(codes.MISSING_TRANSFORM(name=name, help=help))
    return len(spec.shares)


@lru_cache(maxsize=16)
def plan_of_text(spec_text: str, base: Architecture) -> Plan:
    """Build the plan of a spec's text, cached because many adapters have the same plan.

    Raises:
        BishareError: see `build_plan`.
        ValueError: the text uses other specs.
    """
    return build_plan(_spec_of(spec_text), base)[0]


def packages_of(plan: Plan) -> dict[str, str]:
    """Return the third-party packages of the plan's transforms."""
    packages = {name: package_version(name) for name in sorted({t.transform for t in plan.terms})}
    return {name: package for name, package in packages.items() if package}


@lru_cache(maxsize=16)
def _spec_of(spec_text: str) -> Spec:
    spec, where = read(spec_text, "spec.share")
    if where.used:
        raise ValueError("it uses other files")
    return spec
