"""Measure the language server's response time for a spec of 200 lines, in a separate process.

``answer`` is for a text that the server knows. ``after a change`` directly follows a change, so the text is
parsed again. ``processor`` is the processor time of the latter, which other programs affect less.
Measurements are interleaved, and the first is repeated at the end as a control.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable
from statistics import median, quantiles

from harness import Timing, interleave, write
from lsprotocol import types as lsp
from pygls.lsp.client import LanguageClient

from bishare_dsl.language import format_text
from bishare_dsl.lsp.complete import completions
from bishare_dsl.lsp.diagnose import diagnostics
from bishare_dsl.lsp.document import Document
from bishare_dsl.lsp.hints import inlay_hints
from bishare_dsl.lsp.hover import hover

SERVER = [sys.executable, "-m", "bishare_dsl.cli.main", "lsp"]
URI = "file:///nowhere/long.share"
ROUNDS = 20
GOAL = 50
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def spec() -> str:
    """Write 200 lines: params, lets, and shares with each clause on a separate line."""
    lines = ["# A long spec.", "# model: llama-7b", "spec long", ""]
    lines += [f"param r_{i} = {i % 8 + 1}  # of the share s_{i}" for i in range(28)] + [""]
    lines += [f"let part_{i} = {KINDS[i % 7]} and layer in {i}..{i + 4}" for i in range(28)] + [""]
    lines += [f"target {', '.join(KINDS)}", "", "scale 2", ""]
    for i in range(26):
        lines += [f"share s_{i}", f"    where part_{i}", "    per layer // 2", f"    rank r_{i}"]
        lines += ["    via KE(size = 256)"]
    lines += ["share rest  per module  rank r_26 + r_27"]
    lines.insert(-1, "share lets  where part_26, part_27  per layer  rank 1  via SS")
    return "\n".join(lines) + "\n" * (201 - len(lines))


TEXT = spec()
DOCUMENT = lsp.TextDocumentIdentifier(URI)
WHOLE = lsp.Range(lsp.Position(0, 0), lsp.Position(200, 0))


def place(what: str, behind: int = 0) -> lsp.Position:
    offset = TEXT.index(what) + behind
    return lsp.Position(TEXT.count("\n", 0, offset), offset - TEXT.rfind("\n", 0, offset) - 1)


REQUESTS = {
    "completion": lambda c: c.text_document_completion_async(
        lsp.CompletionParams(DOCUMENT, place("KE(size", 3))
    ),
    "hover: a let": lambda c: c.text_document_hover_async(
        lsp.HoverParams(DOCUMENT, place("where part_7", 8))
    ),
    "hover: a share": lambda c: c.text_document_hover_async(
        lsp.HoverParams(DOCUMENT, place("\nshare s_5", 8))
    ),
    "definition": lambda c: c.text_document_definition_async(
        lsp.DefinitionParams(DOCUMENT, place("rank r_9", 6))
    ),
    "inlay hints": lambda c: c.text_document_inlay_hint_async(lsp.InlayHintParams(DOCUMENT, WHOLE)),
    "formatting": lambda c: c.text_document_formatting_async(
        lsp.DocumentFormattingParams(DOCUMENT, lsp.FormattingOptions(4, True))
    ),
    "rename": lambda c: c.text_document_rename_async(
        lsp.RenameParams(DOCUMENT, place("rank r_9", 6), "other")
    ),
}


AGAIN = "diagnostics, again"
WORK = {
    "diagnostics": diagnostics,
    "completion": lambda d: completions(d, place("KE(size", 3)),
    "hover: a let": lambda d: hover(d, place("where part_7", 8)),
    "hover: a share": lambda d: hover(d, place("\nshare s_5", 8)),
    "inlay hints": lambda d: inlay_hints(d, WHOLE),
    "formatting": lambda d: format_text(d.text),
    AGAIN: diagnostics,
}


def processor() -> dict[str, Timing]:
    """Measure the processor time that each answer takes after a change."""
    gc.set_threshold(100_000, 50, 50)  # As every command of bishare has it.

    def changed(work: Callable[[Document], object]) -> Callable[[], object]:
        document = Document(TEXT, "/nowhere/long.share")
        return lambda: work(document)

    subjects = {name: lambda work=work: changed(work) for name, work in WORK.items()}
    return interleave(subjects, ROUNDS, clock=time.process_time)


class Editor(LanguageClient):
    """Opens the spec, changes it, and asks."""

    edition = 1

    async def begin(self) -> None:
        self.told = asyncio.Event()
        self.feature(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)(lambda _: self.told.set())
        self.feature(lsp.WORKSPACE_INLAY_HINT_REFRESH)(lambda _: None)
        await self.start_io(*SERVER)
        await self.initialize_async(lsp.InitializeParams(lsp.ClientCapabilities()))
        self.initialized(lsp.InitializedParams())
        item = lsp.TextDocumentItem(URI, "share", 1, TEXT)
        self.text_document_did_open(lsp.DidOpenTextDocumentParams(item))
        await self.told.wait()

    async def settled(self) -> None:
        """Wait until the server has checked the text, and has nothing to do."""
        await self.told.wait()
        await asyncio.sleep(0.3)

    def change(self) -> None:
        self.edition += 1
        self.told.clear()
        text = f"# {self.edition}" + TEXT[TEXT.index("\n") :]
        whole = lsp.TextDocumentContentChangeWholeDocument(text)
        versioned = lsp.VersionedTextDocumentIdentifier(self.edition, URI)
        self.text_document_did_change(lsp.DidChangeTextDocumentParams(versioned, [whole]))


async def timed(editor: Editor, name: str, changed: bool) -> float:
    await editor.settled()
    if changed:
        editor.change()
    start = time.perf_counter()
    assert await REQUESTS[name](editor) is not None, name
    return 1000 * (time.perf_counter() - start)


async def measure() -> list[dict[str, object]]:
    editor = Editor("benchmark", "1")
    await editor.begin()
    times: dict[tuple[str, bool], list[float]] = {}
    checks = []
    for _ in range(ROUNDS):
        for name in REQUESTS:
            for changed in (False, True):
                times.setdefault((name, changed), []).append(await timed(editor, name, changed))
        await editor.settled()
        editor.change()
        start = time.perf_counter()
        await editor.told.wait()
        checks.append(1000 * (time.perf_counter() - start))
    await editor.shutdown_async(None)
    editor.exit(None)
    await editor.stop()
    work = processor()
    rows = [row(name, times[name, False], times[name, True], work.get(name)) for name in REQUESTS]
    rows.append(row("diagnostics", None, checks, work["diagnostics"]))
    return [*rows, row(AGAIN, None, None, work[AGAIN])]


def row(
    name: str, known: list[float] | None, changed: list[float] | None, work: Timing | None
) -> dict[str, object]:
    def shown(found: list[float] | None) -> str:
        if found is None:
            return ""
        first, _, third = quantiles(found, n=4)
        return f"{median(found):.1f} ({first:.1f} to {third:.1f})"

    return {
        "request": name,
        "answer, ms": shown(known),
        "after a change, ms": shown(changed),
        "after a change, processor, ms": round(1000 * work.median, 1) if work else "",
        "quartiles, ms": work.quartiles(1000, 1) if work else "",
    }


def main() -> None:
    assert TEXT.count("\n") == 200
    write("editor", asyncio.run(measure()), rounds=ROUNDS, lines=200, goal=f"< {GOAL} ms")


if __name__ == "__main__":
    main()
