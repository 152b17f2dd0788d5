"""Convert an analysis to data for JSON: NaN and infinity become null, other numbers get six digits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bishare_dsl.analyse import ranks
from bishare_dsl.analyse.analysis import Analysis
from bishare_dsl.analyse.finding import finding
from bishare_dsl.analyse.maps import Map


def figures(analyses: Sequence[Analysis], charts: Sequence[Map]) -> dict[str, Any]:
    """Return the measures of adapters, and between adapters."""
    return {
        "finding": finding(analyses),
        "adapters": [_adapter(analysis) for analysis in analyses],
        "between": [_chart(chart) for chart in charts],
    }


def _adapter(analysis: Analysis) -> dict[str, Any]:
    adapter = analysis.adapter
    return {
        "name": adapter.name,
        "spec": adapter.plan.spec,
        "model": adapter.plan.base.name,
        "starts_known": adapter.starts_known,
        "rank": analysis.rank,
        "charts": [_chart(chart) for chart in analysis.charts],
        "joint": [
            {
                "key": row.joint.key,
                "common": row.joint.role,
                "pools": row.joint.pools,
                "modules": row.joint.modules,
                "kept": _rounded(row.kept),
                "chance": _rounded(row.chance),
                "kept_by_rank": _rounded({str(k): v for k, v in row.joint.kept.items()}),
            }
            for row in analysis.joint
        ],
        "kinds": _rounded([asdict(row) for row in ranks.kinds(analysis.modules)]),
        "modules": _rounded([asdict(row) for row in analysis.modules]),
    }


def _chart(chart: Map) -> dict[str, Any]:
    return {
        "measure": chart.measure,
        "title": chart.title,
        "labels": chart.labels,
        "mean": _rounded(chart.mean),
        "chance": _rounded(chart.chance),
        "values": _rounded(chart.values.tolist()),
    }


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.6g}") if math.isfinite(value) else None
        case Mapping():
            return {name: _rounded(part) for name, part in value.items()}
        case list() | tuple():
            return [_rounded(part) for part in value]
        case _:
            return value
