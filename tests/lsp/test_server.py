"""A real server process, asked over its standard input as an editor asks."""

import asyncio
import sys

import pytest
import pytest_lsp
from lsprotocol import types as lsp
from pytest_lsp import ClientServerConfig, LanguageClient

from bishare_dsl.language import format_text
from tests.lsp.conftest import MODEL

SERVER = [sys.executable, "-m", "bishare_dsl.cli.main", "lsp"]
TEXT = f"""{MODEL}spec s
param r = 4
let mlp = up_proj, down_proj
target q_proj, mlp
share intra  per layer  rank r  via KE
"""


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_lsp.fixture(config=ClientServerConfig(server_command=SERVER), scope="module")
async def client(lsp_client: LanguageClient, tmp_path_factory):
    params = lsp.InitializeParams(
        capabilities=pytest_lsp.client_capabilities("visual-studio-code"),
        initialization_options={"model": "qwen2.5-0.5b"},
        workspace_folders=[lsp.WorkspaceFolder(tmp_path_factory.getbasetemp().as_uri(), "work")],
    )
    lsp_client.capabilities_of_server = (await lsp_client.initialize_session(params)).capabilities
    yield
    await lsp_client.shutdown_session()
    assert lsp_client._server.returncode == 0


async def told(client, uri):
    """Wait until the server tells what is wrong with a document."""
    found = None
    while found is None or found.uri != uri:
        heard = client.wait_for_notification(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        try:
            found = await asyncio.wait_for(heard, 20)
        except TimeoutError:  # It came while another was looked at.
            return list(client.diagnostics[uri])
    return list(found.diagnostics)


async def opened(client, path, text):
    """Open a file, and wait until the server has told what is wrong with it."""
    path.write_text(text, encoding="utf-8")
    item = lsp.TextDocumentItem(uri=path.as_uri(), language_id="share", version=1, text=text)
    client.text_document_did_open(lsp.DidOpenTextDocumentParams(text_document=item))
    client.found = await told(client, item.uri)
    return lsp.TextDocumentIdentifier(item.uri)


def place(text, what):
    offset = text.index(what)
    return lsp.Position(text.count("\n", 0, offset), offset - text.rfind("\n", 0, offset) - 1)


async def test_diagnostics_as_one_types(client, tmp_path):
    document = await opened(client, tmp_path / "my.share", TEXT.replace("q_proj", "q_porj"))
    [found] = client.found
    assert (found.code, found.source) == ("BS301", "bishare")
    assert found.severity == lsp.DiagnosticSeverity.Error
    assert found.message == "`q_porj` matches no module of llama-7b\nhelp: did you mean `q_proj`?"
    start = place(TEXT, "q_proj")
    assert found.range == lsp.Range(start, lsp.Position(start.line, start.character + 6))
    changed = lsp.VersionedTextDocumentIdentifier(version=2, uri=document.uri)
    whole = lsp.TextDocumentContentChangeWholeDocument(text=TEXT)
    client.text_document_did_change(lsp.DidChangeTextDocumentParams(changed, [whole]))
    assert await told(client, document.uri) == []
    client.text_document_did_close(lsp.DidCloseTextDocumentParams(document))
    assert await told(client, document.uri) == []


async def test_the_model_of_the_settings(client, tmp_path):
    text = "spec s\ntarget wrong\nshare a per module rank 4\n"
    document = await opened(client, tmp_path / "my.share", text)
    found = client.found
    for _ in range(5):  # The model may not be read yet.
        found = found or await told(client, document.uri)
    assert "matches no module of qwen2.5-0.5b" in found[0].message
    settings = lsp.DidChangeConfigurationParams({"bishare": {"model": "llama-7b"}})
    client.workspace_did_change_configuration(settings)
    [found] = await told(client, document.uri)
    assert "of llama-7b" in found.message


async def test_a_model_that_is_not_there_is_told_once(client):
    settings = lsp.DidChangeConfigurationParams({"model": "lama-7b"})
    client.workspace_did_change_configuration(settings)
    await client.wait_for_notification(lsp.WINDOW_SHOW_MESSAGE)
    assert "lama-7b" in client.messages[-1].message


async def test_a_mistake_in_a_used_file_is_shown_at_the_use(client, tmp_path):
    (tmp_path / "base.share").write_text("spec base\nparam r = = 4\n", encoding="utf-8")
    await opened(client, tmp_path / "my.share", 'spec s\nuse "base.share"\ntarget q_proj\n')
    [found] = client.found
    assert found.range.start == lsp.Position(1, 4)
    [other] = found.related_information
    assert other.location.uri == (tmp_path / "base.share").as_uri()
    assert other.location.range.start == lsp.Position(1, 10)


async def test_completion_and_formatting(client, tmp_path):
    document = await opened(client, tmp_path / "my.share", TEXT)
    found = await client.text_document_completion_async(
        lsp.CompletionParams(document, place(TEXT, "KE"))
    )
    assert {"KE", "SS", "GT"} <= {item.label for item in found}
    params = lsp.DocumentFormattingParams(document, lsp.FormattingOptions(4, True))
    [edit] = await client.text_document_formatting_async(params)
    assert edit.new_text == format_text(TEXT)
    assert edit.range.end.line >= TEXT.count("\n")
    for name in ("completion", "document_formatting", "code_action"):
        assert getattr(client.capabilities_of_server, f"{name}_provider")


async def test_code_action(client, tmp_path):
    text = TEXT.replace("q_proj", "q_porj")
    document = await opened(client, tmp_path / "my.share", text)
    at = place(text, "q_porj")
    params = lsp.CodeActionParams(document, lsp.Range(at, at), lsp.CodeActionContext([]))
    [action] = await client.text_document_code_action_async(params)
    assert action.title == "Did you mean `q_proj`?"
    assert action.edit.changes[document.uri][0].new_text == "q_proj"
