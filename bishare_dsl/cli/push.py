"""``bishare push``: an adapter to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report


@click.command(
    "push",
    epilog=options.examples(
        "bishare push my-adapter me/my-adapter",
        "bishare push my-adapter me/my-adapter --private --licence apache-2.0",
    ),
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("name", metavar="OWNER/NAME")
@click.option("--private/--public", default=None, help="Of a repository that is made.")
@click.option("--revision", metavar="BRANCH", help="The branch; by default main.")
@click.option("--message", metavar="TEXT", help="Of the commit.")
@click.option("--licence", metavar="NAME", help="For the model card, as the Hub calls it.")
@options.as_json
@options.quiet
@click.pass_obj
def command(
    report: Report,
    folder: Path,
    name: str,
    private: bool | None,
    revision: str | None,
    message: str | None,
    licence: str | None,
) -> None:
    """Put an adapter on the Hugging Face Hub, with a picture of who shares what and its model card.

    `load_adapter` and the commands that take an adapter take its name there. Log in with `hf auth login`.
    """
    from bishare_dsl.adapter.push import push_folder

    report.note(f"pushing to {name} ...")
    address = push_folder(
        folder, name, private=private, revision=revision, message=message, licence=licence
    )
    report.data(address=address)
    report.result(address)
