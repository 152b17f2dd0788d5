"""Offer advice as code actions: edits that were tried."""

from __future__ import annotations

from lsprotocol import types as lsp

from bishare_dsl.lsp.diagnose import diagnostic
from bishare_dsl.lsp.document import Document


def code_actions(document: Document, uri: str, wanted: lsp.Range) -> list[lsp.CodeAction]:
    """Return code actions for the problems in a range."""
    converter = document.positions
    actions = []
    for problem in document.problems:
        span = document.place(problem)
        where = converter.range(span)
        if not document.is_own(span) or where.start > wanted.end or where.end < wanted.start:
            continue
        changes = [lsp.TextEdit(converter.range(edit.span), edit.text) for edit in problem.edits]
        if changes and problem.help:
            action = lsp.CodeAction(
                title=problem.help[:1].upper() + problem.help[1:],
                kind=lsp.CodeActionKind.QuickFix,
                diagnostics=[diagnostic(document, problem)],
                edit=lsp.WorkspaceEdit(changes={uri: changes}),
                is_preferred=True,
            )
            actions.append(action)
    return actions
