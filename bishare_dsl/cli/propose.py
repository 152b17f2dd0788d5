"""``bishare propose``: a spec that says who should share what, from trained adapters or from gradients."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.budget import parameters
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics.codes import usage as codes

if TYPE_CHECKING:
    from bishare_dsl.analyse.propose.evidence import Evidence
    from bishare_dsl.analyse.propose.proposal import Proposal
    from bishare_dsl.models import Architecture, Site

_ROWS = 64
"""Of data, how many give gradients."""


@click.command(
    "propose",
    epilog=options.examples(
        "bishare propose --model llama-7b --budget 44% --from my-lora --out my.share",
        "bishare propose --model ./my-checkpoint --budget 3M --from task-a --from task-b --out my.share",
        "bishare propose --model ./my-checkpoint --budget 12MiB --data rows.jsonl --out my.share",
        "bishare propose --model ./my-checkpoint --budget 44% --data rows.jsonl --steps 50 --out my.share",
    ),
)
@options.model()
@click.option(
    "--budget",
    required=True,
    metavar="AMOUNT",
    help="Parameters (3M), a size (12MiB), a part of a spec's (44% of lora r=8), or of a LoRA's of rank 8 "
    "on the same modules (44%).",
)
@click.option(
    "--from",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="ADAPTER",
    help="A trained adapter, or a LoRA of PEFT, whose updates are to be kept; may be repeated.",
)
@options.data
@click.option(
    "--steps",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --data, train a LoRA of rank 8 for so many steps of 8 rows, and take its updates; by default "
    "0: the gradients of the first 64 rows, at the base.",
)
@click.option(
    "--target",
    metavar="SELECTION",
    help="With --data, the modules to adapt, as a spec says them; by default those of the spec lora.",
)
@click.option(
    "--shares",
    type=click.IntRange(min=1),
    default=3,
    metavar="N",
    help="The most shares; by default 3.",
)
@options.out("Where to write the spec; by default it is printed.", "FILE", required=False)
@options.keep_starts
@options.seed
@options.dtype
@options.device
@options.force
@click.pass_obj
def command(
    report: Report,
    model: str,
    budget: str,
    folders: tuple[Path, ...],
    data: str | None,
    steps: int | None,
    target: str | None,
    shares: int,
    out: Path | None,
    keep_starts: bool,
    seed: int,
    dtype: str | None,
    device: str | None,
    force: bool,
) -> None:
    """Propose a spec within a budget: keys of the language, one factor or both, and ranks.

    Shares are chosen rank by rank, by the energy that a parameter keeps: of the updates of trained
    adapters (--from), whose small factors are enough; or, for which the weights are loaded, of the gradients
    of some rows (--data), or of a LoRA that is trained on them for a few steps (--data with --steps).

    The spec says in comments what each share keeps, what chance would keep, and what was weighed and left.
    """
    from bishare_dsl.analyse.propose.proposal import propose
    from bishare_dsl.cli.updates import progress_bar
    from bishare_dsl.models import architecture_of
    from bishare_dsl.writing import replace_file

    if bool(folders) == (data is not None):
        raise CommandError(codes.WRONG_USAGE(what="give either --from or --data"))
    for name, given in (("--target", target), ("--steps", steps)):
        if given is not None and data is None:
            raise CommandError(codes.WRONG_USAGE(what=f"{name} goes with --data"))
    if steps == 1:
        reason = (
            "--steps 1 changes no A, which has no gradient before B has changed; 2 is the least"
        )
        raise CommandError(codes.WRONG_USAGE(what=reason))
    if steps and device not in (None, "auto", "cpu", "cuda"):
        reason = (
            "with --steps, --device is cpu, cuda or auto; CUDA_VISIBLE_DEVICES chooses among GPUs"
        )
        raise CommandError(codes.WRONG_USAGE(what=reason))
    if out is not None and out.exists() and not force:
        raise CommandError(codes.FILE_EXISTS(path=out))
    parameters(budget, architecture := architecture_of(model), ())  # Before long work.
    if data is None:
        evidence = _of_adapters(folders, model, report, keep_starts=keep_starts)
    else:
        sites = _sites(target, architecture)
        if steps:
            evidence = _of_steps(
                model, data, steps, sites, dtype, device, seed, report, keep_starts=keep_starts
            )
        else:
            evidence = _of_data(model, data, sites, dtype, device, seed, report)
    allowed = parameters(budget, evidence.architecture, evidence.sites)
    found = propose(evidence, allowed, shares=shares, seed=seed, watch=progress_bar(report))
    report.all(found.made.problems, found.made.where)
    report.data(**_data(found))
    if out is None:
        report.result(found.text.rstrip("\n"))
    else:
        replace_file(out, found.text.encode())
        report.result(str(out))
    _tell(found, report)


def _of_adapters(
    folders: Sequence[Path], model: str, report: Report, *, keep_starts: bool
) -> Evidence:
    from bishare_dsl.analyse.propose.evidence import of_adapters
    from bishare_dsl.cli.updates import read_adapters

    return of_adapters(read_adapters(folders, model, report, keep_starts=keep_starts))


def _of_steps(
    model: str,
    data: str,
    steps: int,
    sites: Sequence[Site],
    dtype: str | None,
    device: str | None,
    seed: int,
    report: Report,
    *,
    keep_starts: bool,
) -> Evidence:
    from transformers.utils import logging

    from bishare_dsl.analyse.propose.warm_up import warm_up
    from bishare_dsl.train.reporter import Reporter

    logging.disable_progress_bar()
    report.note(f"training a LoRA for {steps:,} steps ...")
    return warm_up(
        model,
        sites,
        data,
        steps,
        seed=seed,
        dtype=dtype,
        on_cpu=device == "cpu",
        keep_starts=keep_starts,
        reporter=Reporter(
            report.quiet, report.note, report.problem, lambda text: click.echo(text, err=True)
        ),
    )


def _of_data(
    model: str,
    data: str,
    sites: Sequence[Site],
    dtype: str | None,
    device: str | None,
    seed: int,
    report: Report,
) -> Evidence:
    from bishare_dsl.analyse.batches import batches_of
    from bishare_dsl.analyse.propose.evidence import of_gradients
    from bishare_dsl.analyse.propose.gradients import gradients
    from bishare_dsl.cli.candidates import load_base
    from bishare_dsl.cli.updates import progress_bar
    from bishare_dsl.models import architecture_of

    live, tokenizer = load_base(model, dtype, device, report)
    batches = batches_of(data, tokenizer, _ROWS)
    found = gradients(live, sites, batches, seed=seed, watch=progress_bar(report))
    source = f"the gradients of {len(batches)} batches of {Path(data).name}"
    return of_gradients(architecture_of(model), found, source)


def _sites(target: str | None, architecture: Architecture) -> list[Site]:
    """Return the modules that a selection means; without one, those of the spec ``lora``.

    Raises:
        BishareError: it is not a selection, or means nothing here.
    """
    from bishare_dsl.compiler import make_plan

    text = f"spec chosen\ntarget {target}\nshare own  per module  rank 1\n"
    plan = make_plan("lora" if target is None else text, architecture).plan
    return [site for site in plan.sites if plan.terms_of[site.path]]


def _data(found: Proposal) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "spec": found.text,
        "trainable": found.made.plan.trainable,
        "budget": found.budget,
        "kept": found.kept,
        "chance": found.chance,
        "shares": [asdict(part) for part in found.parts],
        "weighed": [
            {
                "key": w.candidate.text,
                "rank": w.rank,
                "kept": w.kept,
                "chance": w.chance,
                "parameters": w.parameters,
                "chosen": w.candidate.name in {part.share for part in found.parts},
            }
            for w in found.weighed
        ],
    }


def _tell(found: Proposal, report: Report) -> None:
    from bishare_dsl.analyse.propose.proposal import BEST
    from bishare_dsl.show.table import table

    rows = [
        [
            textwrap.shorten(w.candidate.text, 70),
            w.rank,
            f"{w.parameters:,}",
            f"{w.kept:.1%}",
            "-" if w.chance is None else f"{w.chance:.1%}",
        ]
        for w in found.weighed[:BEST]
    ]
    head = ["weighed, each alone", "rank", "parameters", "kept", "by chance"]
    report.note(*table(head, rows, left={0}).split("\n"))
    if (more := len(found.weighed) - BEST) > 0:
        report.note(f"and {more} more, which --json has")
    report.note(
        f"{found.made.plan.trainable:,} of {found.budget:,} parameters keep {found.kept:.1%}; "
        f"by chance {found.chance:.1%}"
    )
