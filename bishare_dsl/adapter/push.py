"""An adapter or a library on its way to the Hugging Face Hub, with a picture and a card for readers there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from bishare_dsl.adapter.card import FOLDER
from bishare_dsl.adapter.files import (
    CARD,
    CONFIG,
    StoredAdapter,
    names_in,
    place_of,
    read_adapter,
    save_adapter,
)
from bishare_dsl.hub import PICTURE, push_adapter
from bishare_dsl.show.picture import picture
from bishare_dsl.show.svg import whole


def push_folder(
    folder: str | os.PathLike[str],
    name: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    licence: str | None = None,
) -> str:
    """Put an adapter folder on the Hub; `load_adapter(name, model)` loads it from there.

    What is pushed is the adapter, a picture of who shares what, and its card, in which the picture and the
    adapter's name on the Hub now stand. The folder itself is not changed. A library is pushed whole, and
    ``f"{name}#ADAPTER"`` is an adapter of it; an adapter of a library is pushed as one that stands alone.

    Args:
        folder: of an adapter or a library, or an adapter of a library; all of it is checked first.
        name: ``owner/name``, or a name alone for one's own account.
        private: whether a repository that is made is private; by default as the account has it.
        revision: the branch; by default main.
        message: of the commit.
        licence: of the adapter, for its card, as the Hub calls it (``apache-2.0``).

    Returns:
        The address of the repository.

    Raises:
        AdapterError: the folder is damaged (BS601 to BS612), or as `hub.push_adapter`.
    """
    library, one = place_of(folder)
    names = names_in(library) if one is None else ()
    places = [f"{library}#{n}" for n in names] or [os.fspath(folder)]
    stored = read_adapter(places[0])
    files = {**stored.config.files}
    for place in places[1:]:
        files |= read_adapter(place).config.files
    with TemporaryDirectory() as scratch:
        here = Path(scratch)
        if one is not None:
            _write_alone(stored, here)
        else:
            for file in (*files, CONFIG, CARD):
                if (path := library / file).is_file():
                    (here / file).parent.mkdir(exist_ok=True)
                    shutil.copyfile(path, here / file)
        (here / PICTURE).write_text(whole(picture(stored.plan)), encoding="utf-8")
        if (card := here / CARD).is_file():
            text = _for_the_hub(card.read_text("utf-8"), name, licence, _training(library))
            card.write_text(text, encoding="utf-8")
        return push_adapter(here, name, private=private, revision=revision, message=message)


def _write_alone(stored: StoredAdapter, folder: Path) -> None:
    """Write an adapter of a library with the tensors that it shares there."""
    config = stored.config
    save_adapter(
        folder,
        stored.plan,
        stored.tensors(),
        stored.spec_text,
        seed=config.seed,
        base_revision=config.base_revision,
        dtype=config.rounded,
    )


def _for_the_hub(card: str, name: str, licence: str | None, training: str) -> str:
    card = card.replace(FOLDER, name)
    if licence and card.startswith("---\n") and "\nlicense:" not in card:
        card = card.replace("---\n", f"---\nlicense: {licence}\n", 1)
    if PICTURE not in card:
        shown = f"\n## Who shares what\n\n![]({PICTURE})\n{training}\n## Spec\n"
        card = card.replace("\n## Spec\n", shown, 1)
    return card


def _training(folder: Path) -> str:
    """Return a section on the run of `bishare train` that ended in the folder; nothing where none did."""
    try:
        run = json.loads((folder / "run.json").read_bytes())
        data, result = run["data"], run["result"]
        lines = [
            (
                "data",
                ", ".join(
                    f"{_public(part['name'])} ({part['kept']:,} rows{', held out' * (use == 'eval')})"
                    for use, part in data.items()
                ),
            ),
            ("steps", f"{result['steps']:,} of {result['batch']} rows"),
            ("loss", f"{result['loss_first']:.4g} to {result['loss_last']:.4g}"),
            *(
                [("held-out loss", f"{held:.4g}")]
                if (held := result["eval_loss"]) is not None
                else []
            ),
        ]
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return ""
    table = "".join(f"| {name} | {_markdown(value)} |\n" for name, value in lines)
    return f"\n## Training\n\n| | |\n|---|---|\n{table}"


def _public(name: str) -> str:
    """Return the name of data without the folders of the machine that it is on; an id of the Hub as it is."""
    kinds = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
    return Path(name).name if Path(name).suffix.lower() in kinds else name


def _markdown(text: str) -> str:
    """Return a text that means itself in a table of Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|" else c for c in " ".join(text.split()))
