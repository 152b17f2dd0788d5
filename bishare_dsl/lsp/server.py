"""The server, which answers an editor's requests with the other modules of this package."""

from __future__ import annotations

import asyncio
from typing import Any

from lsprotocol import types as lsp
from pygls.lsp.server import LanguageServer
from pygls.uris import to_fs_path

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.language.format import format_text
from bishare_dsl.lsp.complete import completions
from bishare_dsl.lsp.diagnose import diagnostics
from bishare_dsl.lsp.document import Document
from bishare_dsl.lsp.model import ChosenModel
from bishare_dsl.lsp.remedies import code_actions
from bishare_dsl.version import __version__

PAUSE = 0.1
"""Seconds after the last change before a text is checked."""


class SpecServer(LanguageServer):
    """A server with the open documents and the settings ``model`` (as ``--model``) and ``allowUse``."""

    def __init__(self) -> None:
        super().__init__(
            "bishare", __version__, text_document_sync_kind=lsp.TextDocumentSyncKind.Full
        )
        self.chosen = ChosenModel()
        self.model = ""
        self.allow_use = False
        self.first_settings: Any = None
        self._documents: dict[str, Document] = {}
        self._checks: set[asyncio.Task[None]] = set()

    def document(self, uri: str) -> Document:
        """Return the current state of a document."""
        text = self.workspace.get_text_document(uri).source
        cached = self._documents.get(uri)
        if cached is None or cached.text != text or cached.chosen is not self.chosen:
            unit = self.workspace.position_encoding or lsp.PositionEncodingKind.Utf16
            path = to_fs_path(uri) if uri.startswith("file:") else None
            cached = Document(text, path or "<text>", self.chosen, self.allow_use, unit)
            self._documents[uri] = cached
        return cached

    def check(self, uri: str, pause: float = 0) -> None:
        """Check a document in the background after ``pause`` seconds without a change."""
        task = asyncio.ensure_future(self._check(uri, pause))
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    async def _check(self, uri: str, pause: float) -> None:
        version = self.workspace.get_text_document(uri).version
        await asyncio.sleep(pause)
        if uri not in self.workspace.text_documents:
            return
        document = self.document(uri)
        if self.workspace.get_text_document(uri).version != version:
            return
        problems = await asyncio.to_thread(diagnostics, document)
        if self._documents.get(uri) is document:
            self.publish(uri, problems, version)

    def publish(self, uri: str, problems: list[lsp.Diagnostic], version: int | None = None) -> None:
        """Show the diagnostics of a document."""
        params = lsp.PublishDiagnosticsParams(uri=uri, diagnostics=problems, version=version)
        self.text_document_publish_diagnostics(params)

    def forget(self, uri: str) -> None:
        """Drop a closed document."""
        self._documents.pop(uri, None)
        self.publish(uri, [])

    async def apply_settings(self, settings: Any) -> None:
        """Apply settings, such as ``{"model": "llama-7b", "allowUse": true}``, possibly under ``bishare``.

        Settings that are not mentioned keep their values.
        """
        settings = settings.get("bishare", settings) if isinstance(settings, dict) else {}
        if not isinstance(settings, dict):
            return
        self.allow_use = settings.get("allowUse", self.allow_use) is True
        model = str(settings.get("model", self.model) or "")
        if model != self.model:
            self.model = model
            self.chosen = await asyncio.to_thread(ChosenModel, model)
        for problem in self.chosen.problems:
            params = lsp.ShowMessageParams(lsp.MessageType.Error, f"bishare: {problem.message}")
            self.window_show_message(params)
        self._documents.clear()
        for uri in [*self.workspace.text_documents]:
            self.check(uri)


def make_server() -> SpecServer:
    """Create a server with all features."""
    server = SpecServer()

    @server.feature(lsp.INITIALIZE)
    def initialize(params: lsp.InitializeParams) -> None:
        server.first_settings = params.initialization_options

    @server.feature(lsp.INITIALIZED)
    async def initialized(params: lsp.InitializedParams) -> None:
        await server.apply_settings(server.first_settings)

    @server.feature(lsp.WORKSPACE_DID_CHANGE_CONFIGURATION)
    async def configured(params: lsp.DidChangeConfigurationParams) -> None:
        await server.apply_settings(params.settings)

    @server.feature(lsp.TEXT_DOCUMENT_DID_OPEN)
    async def did_open(params: lsp.DidOpenTextDocumentParams) -> None:
        server.check(params.text_document.uri)

    @server.feature(lsp.TEXT_DOCUMENT_DID_CHANGE)
    async def did_change(params: lsp.DidChangeTextDocumentParams) -> None:
        server.check(params.text_document.uri, PAUSE)

    @server.feature(lsp.TEXT_DOCUMENT_DID_SAVE)
    async def did_save(params: lsp.DidSaveTextDocumentParams) -> None:
        server._documents.clear()  # Other documents may use the saved file.
        for uri in [*server.workspace.text_documents]:
            server.check(uri)

    @server.feature(lsp.TEXT_DOCUMENT_DID_CLOSE)
    async def did_close(params: lsp.DidCloseTextDocumentParams) -> None:
        server.forget(params.text_document.uri)

    @server.feature(
        lsp.TEXT_DOCUMENT_COMPLETION, lsp.CompletionOptions(trigger_characters=[" ", '"', ","])
    )
    def on_completion(params: lsp.CompletionParams) -> list[lsp.CompletionItem]:
        return completions(server.document(params.text_document.uri), params.position)

    @server.feature(lsp.TEXT_DOCUMENT_FORMATTING)
    def on_formatting(params: lsp.DocumentFormattingParams) -> list[lsp.TextEdit] | None:
        return _formatted(server.document(params.text_document.uri))

    @server.feature(
        lsp.TEXT_DOCUMENT_CODE_ACTION,
        lsp.CodeActionOptions(code_action_kinds=[lsp.CodeActionKind.QuickFix]),
    )
    def on_code_action(params: lsp.CodeActionParams) -> list[lsp.CodeAction]:
        uri = params.text_document.uri
        return code_actions(server.document(uri), uri, params.range)

    return server


def _formatted(document: Document) -> list[lsp.TextEdit] | None:
    """Format a document, or return None if it has syntax errors."""
    try:
        text = format_text(document.text, document.path)
    except BishareError:
        return None
    if text == document.text:
        return []
    return [
        lsp.TextEdit(
            lsp.Range(lsp.Position(0, 0), lsp.Position(document.source.text.count("\n") + 1, 0)),
            text,
        )
    ]
