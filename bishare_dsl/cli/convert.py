"""``bishare convert``: adapters in the layout of another program, or of bishare."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report, silence_libraries
from bishare_dsl.convert import DTYPES, TARGETS
from bishare_dsl.diagnostics import AdapterError, BishareError, Problem
from bishare_dsl.diagnostics.codes.adapter import CHANGED_FILE, EXPORT_OPTION, FOLDER_EXISTS
from bishare_dsl.folder.card import CARD
from bishare_dsl.writing import ANY, Standing, lock_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bishare_dsl.folder.contents import StoredAdapter


@click.command(
    "convert",
    epilog=options.examples(
        "bishare convert my-adapter --out for-peft --model ./base",
        "bishare convert my-adapter --for gguf --model ./base --out my.gguf",
        "bishare convert peft-lora --for bishare --out my-adapter",
        "bishare convert customers/* --for bishare --out adapters    # each into adapters/NAME",
    ),
)
@options.folders("ADAPTER...")
@click.option(
    *("--for", "target"),
    type=click.Choice([*TARGETS, "bishare"]),
    default="peft",
    show_default=True,
    help="The program to write for. Those with PEFT's files differ in experts.",
)
@options.model(required=False)
@options.out("The folder, or file for gguf, to write; with several ADAPTERs, their parent.", "PATH")
@options.rank
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="float32",
    show_default=True,
    help="Dtype of the values; bishare takes float32 and bfloat16.",
)
@options.force
@click.pass_obj
def command(
    report: Report,
    /,
    folders: tuple[Path, ...],
    model: str | None,
    out: Path,
    force: bool,
    **how: Any,
) -> None:
    """Convert adapters into the layout of another program, or plain LoRAs into adapters of bishare.

    Reads the layouts of bishare, PEFT, vLLM, SGLang and Megatron-Bridge. Every tensor is used, and
    the result is read again and compared at every module. By default the base is the model that the adapter
    names. Its shapes are enough, except to read or write a DoRA of PEFT.

    A LoRA equals the adapter exactly, unless --rank or --dtype limits it. With several ADAPTERs, or a folder
    of them, one that cannot be converted is reported, and the others are converted.
    """
    from bishare_dsl.cli.adapters import named_folders, read_named
    from bishare_dsl.cli.files import check_out, find_adapters

    for_bishare = how["target"] == "bishare"
    rank = how["rank"]
    if for_bishare and rank is not None:
        words = ["fit", *map(str, folders), "--out", str(out)]
        if model:
            words[-2:-2] = ["--model", model]
        fit = f"fit a LoRA to it: `bishare {shlex.join(words)} --spec lora --set r={rank}`"
        reason = "a spec has its own ranks"
        raise AdapterError(EXPORT_OPTION(option="rank", reason=reason, help=fit))
    if force and not for_bishare:
        help = "give another `--out`"
        raise AdapterError(EXPORT_OPTION(option="force", reason="only for bishare", help=help))

    def convert(folder: Path, place: Path) -> tuple[dict[str, Any], str]:
        seen = check_out(place, "convert" if for_bishare else None, force=force)
        stored, _, base = read_named(folder, model, report)
        return _write(folder, stored, partial(modules, base), place, seen, report, **how)

    silence_libraries()
    modules = cache(_modules)
    if len(folders) == 1 and find_adapters(folders[0]) in ([], [folders[0]]):
        report.note(f"converting for {how['target']} ...")
        data, text = convert(folders[0], out)
        report.data(**data)
        report.result(text)
        _say_left([data], report)
        report.note(f"saved in {out}")
        return
    adapters = [adapter for folder in folders for adapter in find_adapters(folder) or [folder]]
    rows: list[dict[str, Any]] = []
    suffix = ".gguf" if how["target"] == "gguf" else ""
    for name, folder in report.bar(named_folders(adapters).items(), "converting"):
        row: dict[str, Any] = {"name": name, "from": str(folder), "out": None}
        try:
            row |= _convert_or_compare(convert, folder, out / f"{name}{suffix}")
        except BishareError as error:
            row["error"] = error.problems[0].code
            report.error(error)
        rows.append(row)
    _report(rows, out, report)


def _convert_or_compare(
    convert: Callable[[Path, Path], tuple[dict[str, Any], str]], folder: Path, place: Path
) -> dict[str, Any]:
    """Convert an adapter, unless an earlier run of the same command, which was interrupted, has done so.

    Raises:
        BishareError: it cannot be converted, or something else stands at the place.
    """
    try:
        data, _ = convert(folder, place)
    except AdapterError as error:
        if error.problems[0].code != FOLDER_EXISTS.code:
            raise
        with TemporaryDirectory() as scratch:
            again = Path(scratch) / place.name
            data, _ = convert(folder, again)
            if not _are_equal(again, place):
                raise
        data["out"] = str(place)
    return data


def _are_equal(one: Path, other: Path) -> bool:
    """Tell whether two files or folders have the same bytes, apart from cards, which a user may edit."""
    if one.is_file() or other.is_file():
        return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()
    if not other.is_dir():
        return False
    contents = []
    for folder in (one, other):
        files = (path for path in folder.rglob("*") if path.is_file() and path.name != CARD)
        contents.append({path.relative_to(folder): path.read_bytes() for path in files})
    return contents[0] == contents[1]


def _modules(base: str, weights: bool) -> PreTrainedModel:
    from bishare_dsl.models.load import load_model, meta_model

    return load_model(base, causal=False)[0] if weights else meta_model(base)


def _write(
    folder: Path,
    stored: StoredAdapter,
    modules: Callable[[bool], PreTrainedModel],
    out: Path,
    seen: Standing,
    report: Report,
    target: str,
    dtype: str,
    **how: Any,
) -> tuple[dict[str, Any], str]:
    """Write an adapter, and return a row of the report and a text.

    Raises:
        BishareError: it cannot be written, or the output differs.
    """
    from bishare_dsl.cli.adapters import bytes_of
    from bishare_dsl.convert.origin import read_origin
    from bishare_dsl.folder.files import place_of, writing
    from bishare_dsl.folder.fingerprint import base_changes, fingerprint

    origin = read_origin(place_of(folder)[0], stored.plan)
    data: dict[str, Any] = {"out": str(out), "modules": len(stored.plan.sites)}
    # The base's weights count if outputs are scaled.
    weights = stored.plan.has_magnitudes and target == "peft"
    saved = stored.config.fingerprint
    if saved and (weights or report.strict):
        report.all(base_changes(saved, fingerprint(modules(True))))
    if target == "bishare":
        with writing(out), lock_name(out):
            report.all(save_again(stored, out, dtype, seen))
            origin.write(out, stored.plan.spec)
        data["spec"] = stored.spec_text
        text = stored.spec_text.rstrip()
    else:
        from bishare_dsl.convert.export import export_adapter

        model = modules(weights)
        how |= {"dtype": dtype, "origin": origin}
        exported = export_adapter(out, stored.plan, stored.tensors(), model, target, **how)
        report.all(exported.warnings)
        data = exported.data()
        text = str(exported)
    data["left"] = [*origin.left_for(target)]
    return data | {"bytes_before": bytes_of(folder), "bytes_after": bytes_of(out)}, text


def _say_left(rows: Iterable[Mapping[str, Any]], report: Report) -> None:
    """Note what was not carried over."""
    left = dict.fromkeys(name for row in rows for name in row["left"])
    if left:
        report.note(f"not carried over: {', '.join(left)}")


def _report(rows: Sequence[dict[str, Any]], out: Path, report: Report) -> None:
    """Report what became of each adapter."""
    from bishare_dsl.show.rows import mib
    from bishare_dsl.show.table import Table

    done = [row for row in rows if row["out"]]
    before = sum(row["bytes_before"] for row in done)
    after = sum(row["bytes_after"] for row in done)
    report.data(adapters=rows, converted=len(done), bytes_before=before, bytes_after=after)
    _say_left(done, report)
    cells = [
        [
            row["name"],
            row.get("error") or row["modules"],
            row.get("bytes_before", ""),
            row.get("bytes_after", ""),
        ]
        for row in rows
    ]
    sizes = f"{mib(before)} MiB before, {mib(after)} after"
    text = f"{len(done):,} of {len(rows):,} converted into {out}: {sizes}"
    report.tables(Table(["name", "modules", "bytes before", "after"], cells), text)


def save_again(
    stored: StoredAdapter, out: Path, dtype: str = "float32", seen: Standing = ANY
) -> tuple[Problem, ...]:
    """Save an adapter in another folder, after comparing what will be read from it.

    Args:
        stored: the adapter.
        out: the folder; unchanged if a comparison fails.
        dtype: of the file; only tensors in float32 are compared.
        seen: what may be replaced, as in `save_adapter`.

    Returns:
        The warnings of `save_adapter`.

    Raises:
        BishareError: see `save_adapter`; or a tensor differs (BS607).
    """
    from bishare_dsl.folder.files import save_adapter

    tensors = stored.tensors()
    config = stored.config

    def compare(saved: StoredAdapter) -> None:
        if dtype != "float32":
            return
        again = saved.tensors()
        wrong = [name for name, tensor in again.items() if not tensor.equal(tensors[name])]
        if wrong:
            reason = f"its tensors differ from those of `{stored.folder}`: `{wrong[0]}`"
            raise AdapterError(CHANGED_FILE(path=out, reason=reason))

    return save_adapter(
        out,
        stored.plan,
        tensors,
        stored.spec_text,
        check=compare,
        dtype=dtype,
        seed=config.seed,
        origin=config.origin,
        seen=seen,
        command="convert",
    )
