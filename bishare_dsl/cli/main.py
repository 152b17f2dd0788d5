"""``bishare``: the group of commands. Exceptions become messages and exit codes here."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from bishare_dsl.cli.group import LazyGroup
from bishare_dsl.cli.options import allow_use, as_json, examples, quiet, spec_transform, strict
from bishare_dsl.cli.report import BROKEN_PIPE, INTERNAL, INTERRUPTED, USAGE, CommandError, Report
from bishare_dsl.diagnostics import BishareError, advise
from bishare_dsl.diagnostics.interrupt import hides_interrupt
from bishare_dsl.version import __version__

NAME = "bishare"
COMPLETE = "_BISHARE_COMPLETE"

COMMANDS = {
    "check": "Find every mistake in specs.",
    "fmt": "Give specs the standard layout.",
    "plan": "Show what a spec shares and costs on a model.",
    "show": "Draw which modules share which tensors.",
    "diff": "Compare two adapters.",
    "compile": "Write an untrained adapter from a spec, or print a stage.",
    "train": "Train an adapter on your examples.",
    "inspect": "Show what is in an adapter, or list many.",
    "verify": "Find out whether an adapter is applied.",
    "merge": "Add an adapter to its base's weights, and save the result.",
    "fit": "Find the adapter of a spec that is closest to LoRAs (experimental).",
    "convert": "Convert adapters into the layout of another program, and back.",
    "eval": "Count how often adapters prefer the correct option.",
    "specs": "List the specs and the model shapes that ship with bishare.",
    "explain": "Explain an error code.",
    "lsp": "Start the language server for an editor.",
}


@click.group(
    name=NAME,
    cls=LazyGroup,
    invoke_without_command=True,
    lines=COMMANDS,
    params=[quiet],
    shared={
        allow_use: ("check", "plan", "show", "compile", "fit"),
        as_json: COMMANDS.keys() - {"lsp"},
        quiet: COMMANDS.keys(),
        strict: ("convert", "merge", "verify"),
        spec_transform: COMMANDS.keys() - {"fmt", "specs", "explain"},
    },
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "bishare check my.share",
        "bishare plan bishare_ke --model llama-7b --set r_inter=32",
        "bishare train my.share --model ./my-checkpoint --data rows.jsonl --output_dir out",
        "bishare COMMAND --help",
    )
    + "\n\n\b\nExit codes: 0 fine, 1 findings, 2 wrong usage.\n"
    "NO_COLOR=1 turns colours off, FORCE_COLOR=1 on.\nBISHARE_DEBUG=1 shows tracebacks.",
)
@click.version_option(__version__, prog_name=NAME, message="%(prog)s %(version)s")
@click.pass_context
def bishare(context: click.Context) -> None:
    """A small language and a compiler for low-rank adapters whose factors are shared."""  # noqa: D401 - the one description of bishare
    if context.invoked_subcommand is None:
        context.obj.stop(USAGE, context.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; by default the arguments of the process.

    Returns:
        The exit code, see `bishare_dsl.cli.report`.
    """
    if instruction := os.environ.get(COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(bishare, {}, NAME, COMPLETE, instruction)
    # Starting creates many objects and no garbage; collecting takes a tenth of a short command.
    gc.set_threshold(100_000, 50, 50)
    # Pydantic would read the metadata of every installed package to find plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # Print the code of a character that the terminal cannot show.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # A closed stream, such as by `>&-`.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    report = Report()
    try:
        with report.stops_no_work():
            _run(sys.argv[1:] if argv is None else list(argv), report)
        report.close()
    except OSError as error:  # standard output's
        # Python would flush again at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # The reader closed the pipe.
            return BROKEN_PIPE
        report.stop(USAGE, f"error: cannot write the result: {error.strerror}")
    if argv is None:
        # End the process here, which skips a last garbage collection.
        gc.freeze()
    return report.exit_code


_INTERRUPTED = "error: interrupted; nothing was left half-written"


def _run(arguments: list[str], report: Report) -> None:
    try:
        with bishare.make_context(NAME, arguments, obj=report) as context:
            bishare.invoke(context)
    except click.exceptions.Exit as stop:  # --help and --version
        report.exit_code = stop.exit_code
    except click.ClickException as error:
        # click stops at some mistakes before it reads `--json`.
        report.as_json = report.as_json or "--json" in arguments
        report.error(_usage(error, arguments))
    except BishareError as error:
        report.error(error)
        _show_traceback()
    except (KeyboardInterrupt, click.Abort):
        report.stop(INTERRUPTED, _INTERRUPTED)
    except OSError as error:
        if error.filename is None:
            raise
        from bishare_dsl.cli.reading import cannot_read

        report.problem(cannot_read(error.filename, error))
        _show_traceback()
    except MemoryError:
        report.stop(INTERNAL, "error: out of memory")
        _show_traceback()
    except Exception as error:  # noqa: BLE001 - users see no traceback unless they request it
        if hides_interrupt(error):
            report.stop(INTERRUPTED, _INTERRUPTED)
            return
        words = " ".join(str(error).split())
        report.stop(INTERNAL, f"error: unexpected {type(error).__name__}: {words}")
        if not _show_traceback():
            help = "this is a bug in bishare; BISHARE_DEBUG=1 shows the traceback to report"
            report.stop(INTERNAL, f"  = help: {help}")


def _usage(error: click.ClickException, words: Sequence[str]) -> CommandError:
    from bishare_dsl.cli.unknown import unknown_options
    from bishare_dsl.diagnostics.codes import usage as codes

    context = getattr(error, "ctx", None)
    path = " ".join([NAME, *(word for word in words[:1] if word in COMMANDS)])
    what = error.format_message().rstrip(".")
    help = f"`{path} --help` says what it takes"
    if isinstance(error, click.NoSuchOption) and context is not None:
        return unknown_options(context, words, error.option_name)
    if context is not None and what.startswith(("Missing", "Got unexpected extra")):
        help = f"{_remedy(context, what, words, path)}; {help}"
    return CommandError(codes.WRONG_USAGE(what=what[:1].lower() + what[1:], help=help))


def _remedy(context: click.Context, what: str, words: Sequence[str], path: str) -> str:
    """Return how to give an argument that is missing, or that a command did not expect.

    Args:
        context: the command's.
        what: click's message.
        words: of the command line.
        path: the command as it is typed.
    """
    extra = what.partition("(")[2].removesuffix(")")
    if "=" in extra and any(option.name == "params" for option in context.command.params):
        return f"a param is given by `--set {extra}`"
    if extra[:1] in ("–", "—"):
        return f"an option begins with two hyphens: `--{extra.lstrip('–—-')}`"
    lacks_model = what.startswith("Missing option '--model'")
    base = next((word for word in words if Path(word, "config.json").is_file()), None)
    if base and not lacks_model and "-m" not in words and "--model" not in words:
        return f"a base is given by `--model {base}`"
    advice = advise("usage", f"{context.command.name}:{what.split()[1]}")
    if advice:
        return advice
    if lacks_model:
        return "such as `--model llama-7b`"
    usage = " ".join(context.command.collect_usage_pieces(context)[1:])
    return f"it reads `{path} {usage}`"


def _show_traceback() -> bool:
    if not os.environ.get("BISHARE_DEBUG"):
        return False
    import traceback

    traceback.print_exc()
    return True


if __name__ == "__main__":
    sys.exit(main())
