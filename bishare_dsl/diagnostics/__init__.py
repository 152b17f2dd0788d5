"""Diagnostics: problems as data, the registry of their codes, and their rendering."""

from bishare_dsl.diagnostics.errors import (
    AdapterError,
    BishareError,
    BishareWarning,
    DataError,
    EvaluateError,
    ModelError,
    PlanError,
    SpecError,
    lines_of,
    one_line,
    raise_errors,
)
from bishare_dsl.diagnostics.problem import Code, Edit, Problem, Severity, near_names, nearest
from bishare_dsl.diagnostics.render import as_json, escaped, render
from bishare_dsl.diagnostics.source import Loc, Source, SourceMap, Span
from bishare_dsl.diagnostics.words import advise, advise_option
