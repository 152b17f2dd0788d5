"""Convert problems to an editor's diagnostics."""

from __future__ import annotations

from pathlib import Path

from lsprotocol import types as lsp

from bishare_dsl.diagnostics import Problem
from bishare_dsl.diagnostics.codes import spec as codes
from bishare_dsl.lsp.document import Document
from bishare_dsl.lsp.positions import Positions

_SEVERITY = {
    "error": lsp.DiagnosticSeverity.Error,
    "warning": lsp.DiagnosticSeverity.Warning,
    "note": lsp.DiagnosticSeverity.Information,
}


def diagnostics(document: Document) -> list[lsp.Diagnostic]:
    """Return the diagnostics of a document.

    A problem of a used file is shown at its `use`, with a link to its own location.
    """
    return [diagnostic(document, problem) for problem in document.problems]


def diagnostic(document: Document, problem: Problem) -> lsp.Diagnostic:
    """Convert one problem of a document."""
    where = document.survey.where
    span = document.place(problem)
    related = None
    if uses := where.uses(span):
        elsewhere = Positions(where.source_of(span), document.unit)
        location = lsp.Location(
            Path(elsewhere.source.name).resolve().as_uri(), elsewhere.range(span)
        )
        related = [lsp.DiagnosticRelatedInformation(location, problem.message)]
        span = uses[-1]
    unused = problem.code == codes.UNUSED.code
    return lsp.Diagnostic(
        range=document.positions.range(span),
        message=f"{problem.message}\nhelp: {problem.help}" if problem.help else problem.message,
        severity=_SEVERITY[problem.severity],
        code=problem.code,
        source="bishare",
        tags=[lsp.DiagnosticTag.Unnecessary] if unused else None,
        related_information=related,
    )
