"""``bishare generate``: generate text with adapters and their base."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics import EvaluateError, one_line
from bishare_dsl.diagnostics.codes.evaluate import RUN_FAILED
from bishare_dsl.diagnostics.codes.usage import WRONG_USAGE


@click.command(
    "generate",
    epilog=options.examples(
        'bishare generate my-adapter --model ./my-checkpoint --prompt "Why is the sky blue?"',
        'bishare generate a b --base --model ./my-checkpoint --prompt "$(cat question.txt)" --json',
        'bishare generate my-adapter --model ./my-checkpoint --prompt "Name a fruit." --set num_beams=4',
    ),
)
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="[DIR]...")
@options.model(weights=True)
@click.option("--prompt", required=True, metavar="TEXT", help="Text to answer or continue.")
@click.option("--base", is_flag=True, help="Also answer with the base, first.")
@click.option(
    "--chat/--no-chat", default=None, help="Use the chat template; by default if there is one."
)
@click.option("--system", metavar="TEXT", help="System message of the chat.")
@click.option(
    "--max_new_tokens", default=256, metavar="N", help="Limit of the answer; by default 256."
)
@options.keywords
@options.seed
@options.dtype
@options.device
@click.pass_obj
def command(
    report: Report,
    /,
    folders: tuple[Path, ...],
    model: str,
    prompt: str,
    base: bool,
    chat: bool | None,
    system: str | None,
    seed: int,
    dtype: str | None,
    device: str | None,
    max_new_tokens: int,
    keywords: dict[str, Any],
) -> None:
    """Answer a prompt with each adapter, on a base that is loaded once.

    Without DIR the base alone answers. --set passes any argument to generate() of transformers, such as
    temperature=0.7, which also turns on sampling, as top_p does. The model's generation config sets the other
    arguments. On a terminal the text is shown while it is generated.
    """
    if not prompt:
        raise CommandError(WRONG_USAGE(what="the prompt is empty"))
    generation = {"max_new_tokens": max_new_tokens} | keywords
    if generation.keys() & {"temperature", "top_p"}:
        generation.setdefault("do_sample", True)
    from bishare_dsl.cli.candidates import adapted, load_base, read_adapters, with_base

    models = with_base(read_adapters(folders, model, report), base=base)
    live, tokenizer = load_base(model, dtype, device, report)
    from transformers import TextStreamer, set_seed  # Imported after it is silenced.

    chat = bool(tokenizer.chat_template) if chat is None else chat
    if (chat and not tokenizer.chat_template) or (system is not None and not chat):
        raise CommandError(WRONG_USAGE(what="`--chat` and `--system` need a chat template"))
    text: Any = prompt
    if chat:
        turns = [] if system is None else [{"role": "system", "content": system}]
        turns.append({"role": "user", "content": prompt})
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not chat).to(live.device)
    streamer = None
    if sys.stdout.isatty() and not report.as_json and generation.get("num_beams", 1) == 1:
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    answers = []
    for label, adapter in models.items():
        if len(models) > 1:
            report.result(f"== {label}")
        set_seed(seed)
        with adapted(live, adapter, report):
            try:
                output = live.generate(  # type: ignore[operator]
                    inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    tokenizer=tokenizer,
                    streamer=streamer,
                    **generation,
                )
                new = output[:, inputs["input_ids"].shape[1] :]
            except Exception as error:  # of any type, for arguments that the model does not have
                raise EvaluateError(RUN_FAILED(model=label, reason=one_line(error))) from error
        for answer in tokenizer.batch_decode(new, skip_special_tokens=True):
            answers.append({"model": label, "text": answer})
            if streamer is None:
                report.result(answer)
    report.data(model=model, answers=answers)
