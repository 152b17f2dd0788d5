"""Find the model to check a spec against: from a comment in the spec, or from the settings."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bishare_dsl.diagnostics import ModelError, Problem, Source, Span, nearest
from bishare_dsl.diagnostics.codes.models import UNKNOWN_MODEL
from bishare_dsl.models.presets import ALIASES, PRESETS, preset
from bishare_dsl.models.site import Architecture

_COMMENT = re.compile(r"^[ \t]*#[ \t]*model:[ \t]*(\S+)[ \t]*$", re.MULTILINE)
_HELP = "a comment names a preset, which `bishare specs` lists; any other model is a setting of the editor"


@dataclass(frozen=True)
class NamedModel:
    """The model in a comment ``# model: NAME``: always a preset, so that a spec reads no other file."""

    name: str
    span: Span

    @property
    def architecture(self) -> Architecture | None:
        """The shapes of the model, or None if there is no such preset."""
        return preset(self.name) if self.name in (*PRESETS, *ALIASES) else None

    @property
    def problem(self) -> Problem | None:
        """The problem with the name, or None."""
        if self.architecture is not None:
            return None
        near = nearest(self.name, (*PRESETS, *ALIASES)) or _HELP
        return UNKNOWN_MODEL(name=self.name, span=self.span, help=near)


def named_model(source: Source) -> NamedModel | None:
    """Return the model of the first comment that names one."""
    if (match := _COMMENT.search(source.text)) is None:
        return None
    start, end = match.span(1)
    return NamedModel(match[1], Span(source.start + start, source.start + end))


class ChosenModel:
    """The model of the settings, whose shapes are read once."""

    def __init__(self, name: str | None = None) -> None:
        self.architecture: Architecture | None = None
        self.problems: tuple[Problem, ...] = ()
        if name:
            from bishare_dsl.models.load import architecture_of

            try:
                self.architecture = architecture_of(name)
            except ModelError as error:
                self.problems = error.problems
