"""Known limitations of engines: the table `engines.toml`, and the tests that it names."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bishare_dsl.diagnostics import Problem
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.verify.contents import Contents, kind_of


def _field(name: str) -> Callable[[Contents], bool]:
    """Return a test of whether PEFT's config sets this field."""
    return lambda contents: getattr(contents.config, name, None) not in (None, False, "none", {})


def _one_sided(contents: Contents) -> bool:
    experts = {path for path in contents.named if ".experts." in path}
    kinds = {kind_of(path) for path in experts}
    return ("gate_proj" in kinds) != ("up_proj" in kinds)


TESTS: dict[str, Callable[[Contents], bool]] = {
    "dora": _field("use_dora"),
    "modules_to_save": lambda contents: bool(getattr(contents.config, "modules_to_save", None)),
    "bias": _field("bias"),
    "base_layer": lambda contents: any(".base_layer." in name for name in contents.others),
    "rank_over_512": lambda contents: max(contents.ranks, default=0) > 512,
    "other_type": lambda contents: bool(contents.config and contents.config.peft_type != "LORA"),
    "target_parameters": lambda c: bool(c.config and c.config.target_parameters),
    "one_sided_experts": _one_sided,
    "rslora": _field("use_rslora"),
    "alpha_pattern": _field("alpha_pattern"),
    "peft": lambda contents: contents.config is not None,
    "bishare": lambda contents: contents.config is None,
}


def facts() -> list[dict[str, Any]]:
    """Return the rows of the table."""
    rows: list[dict[str, Any]] = tomllib.loads(
        Path(__file__).with_name("engines.toml").read_text("utf-8")
    )["fact"]
    return rows


def engine_problems(contents: Contents, engine: str) -> Iterator[Problem]:
    """Yield parts of an adapter that an engine is known to ignore, reject or misread (BS868)."""
    for row in facts():
        if row["engine"] == engine and TESTS[row["when"]](contents):
            yield codes.ENGINE(**{key: row[key] for key in row if key != "when"})
