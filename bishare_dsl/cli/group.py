"""A group of commands that imports a command's module only when the command is used."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from importlib import import_module

import click

from bishare_dsl.diagnostics import advise


class LazyGroup(click.Group):
    """A group that stores one line of help for each command.

    ``lines`` maps names to lines. A command is the object ``command`` of the module with its name in this
    package; ``--help`` and a mistyped name import no module. ``shared`` maps options to the names of the
    commands that take them.
    """

    def __init__(
        self,
        *,
        lines: Mapping[str, str],
        shared: Mapping[click.Option, Collection[str]],
        **settings: object,
    ) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.lines = lines
        self.shared = shared

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lines)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lines:
            return None
        # Lark imports this if it is installed, in 10 ms, and no grammar of ours needs it.
        sys.modules.setdefault("regex", None)  # type: ignore[arg-type]
        try:
            command: click.Command = import_module(f"{__package__}.{cmd_name}").command
        finally:
            if not sys.modules["regex"]:  # type: ignore[truthy-bool]
                del sys.modules["regex"]
        for option, names in self.shared.items():
            if cmd_name in names and option not in command.params:
                command.params.append(option)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.lines and not args[0].startswith("-"):
            help = advise("command", args[0], self.lines, few=0) or "see --help"
            if args[0].endswith(".share"):
                help = f"to check a spec, use `bishare check {args[0]}`"
            raise click.UsageError(f"no such command `{args[0]}`: {help}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.lines.items()))
