"""``bishare lsp``: start the language server."""

from __future__ import annotations

import logging
import os
import sys

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report


@click.command("lsp", epilog=options.examples("bishare lsp"))
@click.pass_obj
def command(report: Report) -> None:
    """Serve an editor: diagnostics, fixes, completion and formatting, over standard input and output.

    An editor starts it. It speaks the Language Server Protocol, and needs `pip install 'bishare[lsp]'`.
    """
    try:
        from bishare_dsl.lsp.server import make_server
    except ImportError as error:
        from bishare_dsl.diagnostics.codes.train import NEEDS_PACKAGE

        help_line = "pip install 'bishare[lsp]'"
        missing = NEEDS_PACKAGE(what="a language server", package=error.name, help=help_line)
        raise CommandError(missing) from error
    # Editors show standard error, where pygls would warn at each orderly end.
    logging.getLogger("pygls").setLevel(logging.ERROR)
    # The server closes its output, and other output there would break the protocol: pass a duplicate.
    protocol_out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr
    make_server().start_io(stdout=protocol_out)
