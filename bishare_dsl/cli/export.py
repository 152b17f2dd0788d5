"""``bishare export``: `convert` for those who have trained an adapter here."""

from __future__ import annotations

import click

from bishare_dsl.cli import convert, options

command = click.Command(
    "export",
    params=[*convert.command.params],
    callback=convert.command.callback,
    help="""Write an adapter as one plain LoRA, for PEFT, vLLM, SGLang, llama.cpp or mlx-lm.

    The LoRA equals the adapter exactly, unless --rank or --dtype limits it, and is read again and compared at
    every module. Every module has the rank that it needs. Scales are folded into B. The model's shapes are
    enough; an adapter with `magnitude` needs its weights, and becomes a DoRA of PEFT.""",
    epilog=options.examples(
        "bishare export my-adapter --model llama-7b --out for-peft",
        "bishare export my-adapter --model llama-7b --out small --rank 8 --dtype bfloat16",
        "bishare export my-adapter --model ./my-checkpoint --out my.gguf --format gguf",
    ),
)
