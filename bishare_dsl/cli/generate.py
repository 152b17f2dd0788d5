"""``bishare generate``: text from a model with an adapter, from several, and from the base."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics.codes import usage as codes

_SHOWN = 60


@click.command(
    "generate",
    epilog=options.examples(
        'bishare generate my-adapter --model ./my-checkpoint --prompt "Why is the sky blue?"',
        "bishare generate a b --base --model ./my-checkpoint --prompt-file question.txt --json",
        "echo 2 + 2 = | bishare generate my-adapter --model ./my-checkpoint --prompt-file - --no-chat",
    ),
)
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="[DIR]...")
@options.model(weights=True)
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="May be repeated.")
@click.option(
    "--prompt-file",
    "files",
    multiple=True,
    type=click.Path(allow_dash=True),
    metavar="FILE",
    help="A prompt in a file, or - for standard input; may be repeated.",
)
@click.option("--base", is_flag=True, help="Let the base without an adapter answer too, first.")
@click.option(
    "--chat/--no-chat",
    default=None,
    help="Put the prompt into the tokenizer's chat template; by default if it has one.",
)
@click.option("--system", metavar="TEXT", help="What the chat template says before the prompt.")
@click.option(
    "--max_new_tokens",
    type=click.IntRange(min=1),
    default=256,
    metavar="N",
    help="The most that are generated; by default 256.",
)
@click.option(
    "--do_sample/--no_do_sample",
    default=None,
    help="Draw tokens, or take the most likely; by default as the model's generation config says.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    metavar="T",
    help="Draw tokens at this temperature; 0 takes the most likely.",
)
@click.option(
    "--top_p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="P",
    help="Draw from the most likely tokens that have this share.",
)
@click.option(
    "--top_k",
    type=click.IntRange(min=1),
    metavar="K",
    help="Draw from this many most likely tokens.",
)
@click.option("--num_beams", type=click.IntRange(min=1), metavar="N", help="Beam search.")
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="End where this is written; may be repeated."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    metavar="N",
    help="Set before each answer; by default 0.",
)
@options.dtype
@options.device
@options.as_json
@options.quiet
@click.pass_obj
def command(
    report: Report,
    /,
    folders: tuple[Path, ...],
    model: str,
    prompts: tuple[str, ...],
    files: tuple[str, ...],
    base: bool,
    chat: bool | None,
    system: str | None,
    max_new_tokens: int,
    stop: tuple[str, ...],
    seed: int,
    dtype: str | None,
    device: str | None,
    **sampling: Any,
) -> None:
    """Let models answer prompts: each adapter in turn, on one base that is loaded once.

    Without DIR the base alone answers. Options with underscores are those of generate() in transformers.
    On a terminal the text is shown as it comes.
    """
    asked = [*prompts, *map(_read, files)]
    if not asked:
        help = 'such as `--prompt "What is shared?"`'
        what = "missing option `--prompt` or `--prompt-file`"
        raise CommandError(codes.WRONG_USAGE(what=what, help=help))
    if not all(asked):
        raise CommandError(
            codes.WRONG_USAGE(what="a prompt is empty", help="write what the model is to answer")
        )
    if system is not None and chat is False:
        raise CommandError(codes.WRONG_USAGE(what="`--system` needs the chat template"))
    generation = _generation(**sampling)
    from bishare_dsl.evaluate.candidates import activate_candidate, check_candidates, load_base

    templated = bool(chat) or system is not None
    source, models, problems = check_candidates(model, folders, base=base, chat=templated)
    report.all(problems)
    report.note(f"loading {model} ...")
    from dataclasses import asdict

    from transformers import TextStreamer
    from transformers.utils import logging

    from bishare_dsl.evaluate.completion import complete

    if report.quiet or not sys.stderr.isatty():
        logging.disable_progress_bar()
    live, tokenizer = load_base(source, dtype=dtype, device=device, chat=templated)
    streaming = sys.stdout.isatty() and not report.as_json and (sampling["num_beams"] or 1) == 1
    answers: list[dict[str, Any]] = []
    for candidate in models:
        with activate_candidate(live, candidate) as notes:
            for note in notes:
                report.note(note)
            for prompt in asked:
                if len(models) * len(asked) > 1:
                    report.result(
                        f"{'' if not answers else chr(10)}== {_title(candidate.label, prompt)}"
                    )
                streamer = None
                if streaming:
                    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
                answer = complete(
                    live,
                    tokenizer,
                    prompt,
                    chat=chat,
                    system=system,
                    stop=stop,
                    seed=seed,
                    max_new_tokens=max_new_tokens,
                    streamer=streamer,
                    **generation,
                )
                if streamer is None:
                    report.result(answer.text)
                answers.append({"model": candidate.label, "prompt": prompt, **asdict(answer)})
    report.data(model=model, answers=answers)


def _read(file: str) -> str:
    """Return a prompt from a file, without the line end that editors put at its end."""
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise CommandError(codes.CANNOT_READ(path=file, reason="it is not text in UTF-8")) from None


def _title(label: str, prompt: str) -> str:
    words = " ".join(prompt.split())
    return f"{label}: {words if len(words) <= _SHOWN else words[: _SHOWN - 3] + '...'}"


def _generation(
    do_sample: bool | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    num_beams: int | None,
) -> dict[str, Any]:
    """Return keywords for ``generate()``: whoever sets how to draw wants tokens drawn."""
    if do_sample is False and (temperature or top_p or top_k):
        what = "`--no_do_sample` leaves nothing for `--temperature`, `--top_p` and `--top_k` to do"
        raise CommandError(codes.WRONG_USAGE(what=what))
    if do_sample and temperature == 0:
        raise CommandError(codes.WRONG_USAGE(what="`--temperature 0` draws nothing"))
    drawing = {"temperature": temperature or None, "top_p": top_p, "top_k": top_k}
    if do_sample is None and temperature == 0:
        do_sample = False
    if do_sample is None and any(value is not None for value in drawing.values()):
        do_sample = True
    given = {"do_sample": do_sample, "num_beams": num_beams, **(drawing if do_sample else {})}
    return {name: value for name, value in given.items() if value is not None}
