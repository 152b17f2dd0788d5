"""What ``--budget`` says: a number of trainable parameters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bishare_dsl.cli.options import read_values
from bishare_dsl.cli.reading import read_spec
from bishare_dsl.cli.report import CommandError
from bishare_dsl.diagnostics.codes import usage as codes

if TYPE_CHECKING:
    from bishare_dsl.models import Architecture

_PARAMETERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_BYTES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_AMOUNT = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)")
_FRACTION = re.compile(
    r"(?P<number>\d+(?:\.\d+)?)\s*(?P<percent>%?)\s*of\s+(?P<spec>\S.*?)(?P<set>(?:\s+\w+=\S+)*)"
)


def parameters(budget: str, architecture: Architecture) -> int:
    """Count the trainable parameters that a budget allows.

    Args:
        budget: ``3M``, ``12MiB``, ``44% of lora``, ``0.44 of lora r=8``.
        architecture: of the model.

    Raises:
        CommandError: it is not an amount (BS907).
        BishareError: the spec that it names cannot be read, or does not fit.
    """
    given = budget.strip()
    if match := _FRACTION.fullmatch(given):
        part = float(match["number"]) / (100 if match["percent"] else 1)
        spec, where = read_spec(match["spec"])
        from bishare_dsl.compiler import make_plan

        chosen = read_values(match["set"].split())
        return int(part * make_plan(spec, architecture, chosen, where).plan.trainable)
    match = _AMOUNT.fullmatch(given)
    unit = match["unit"].lower() if match else ""
    if match and unit in _PARAMETERS:
        return int(float(match["number"]) * _PARAMETERS[unit])
    if match and unit in _BYTES:
        from bishare_dsl.show.rows import BYTES

        return int(float(match["number"]) * _BYTES[unit] / BYTES)
    raise CommandError(codes.BAD_BUDGET(given=budget))
