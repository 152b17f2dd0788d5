"""Inlay hints with the trainable parameters of each share and of the spec."""

from __future__ import annotations

from lsprotocol import types as lsp

from bishare_dsl.lsp.document import Document
from bishare_dsl.show import rows


def inlay_hints(document: Document, wanted: lsp.Range) -> list[lsp.InlayHint]:
    """Return the hints in a range: a share's count after its name, and the total after the target.

    While the text changes, the counts come from the last plan. The server requests a refresh after a new
    plan.
    """
    plan, syntax = document.plan_so_far, document.syntax
    if plan is None or syntax is None:
        return []
    counts = {row.name: row for row in rows.shares(plan)}
    hints = []
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
        after = statement.head.end if statement.keyword == "share" else statement.end
        position = document.positions.position(after)
        if wanted.start <= position <= wanted.end:
            hints.append(lsp.InlayHint(position, label, tooltip=tip, padding_left=True))
    return hints
