"""``bishare completion``: the script that lets a shell complete commands, options and models."""

from __future__ import annotations

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report


@click.command(
    "completion",
    epilog=options.examples(
        'eval "$(bishare completion bash)"',
        "bishare completion fish > ~/.config/fish/completions/bishare.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_obj
def command(report: Report, shell: str) -> None:
    """Print the script that lets a shell complete commands, options and the names of models.

    For bash or zsh evaluate it in ~/.bashrc or ~/.zshrc.
    """
    from click.shell_completion import get_completion_class

    from bishare_dsl.cli.main import COMPLETE, NAME, bishare

    completion = get_completion_class(shell)
    assert completion is not None  # These three come with click.
    report.result(completion(bishare, {}, NAME, COMPLETE).source())
