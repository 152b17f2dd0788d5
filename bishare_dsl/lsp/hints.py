"""Hints in the text: the trainable parameters of each share and of the spec."""

from __future__ import annotations

from lsprotocol import types as lsp

from bishare_dsl.lsp.document import Document
from bishare_dsl.show import rows


def inlay_hints(document: Document, wanted: lsp.Range) -> list[lsp.InlayHint]:
    """Return the counts in a range: of a share after its name, of all after the target.

    While the text changes they are those of the last plan; the editor asks again when there is a new one.
    """
    plan, syntax = document.plan_so_far, document.syntax
    if plan is None or syntax is None:
        return []
    counts = {row.name: row for row in rows.shares(plan)}
    found = []
    for statement in syntax.statements:
        if statement.keyword == "share":
            row = counts.get(statement.name)
            label = f"{row.trainable:,}" if row else "0"
            tip = f"trainable parameters on {plan.base.name}"
        elif statement.keyword == "target":
            label = f"{len(plan.sites):,} modules, {plan.trainable:,} trainable"
            tip = plan.parameters_line
        else:
            continue
        place = statement.head.end if statement.keyword == "share" else statement.end
        position = document.positions.position(place)
        if wanted.start <= position <= wanted.end:
            found.append(lsp.InlayHint(position, label, tooltip=tip, padding_left=True))
    return found
