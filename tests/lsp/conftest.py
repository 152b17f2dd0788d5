"""Documents written with a mark, `|`, where the editor's cursor stands."""

import pytest
from lsprotocol.types import Position

from bishare_dsl.lsp.document import Document
from bishare_dsl.lsp.model import ChosenModel

MODEL = "# model: llama-7b\n"


@pytest.fixture
def at(tmp_path):
    """Return the document of a text, and the place of its mark."""

    def at(marked, *, model=None, name="my.share"):
        before, _, after = marked.partition("|")
        line, column = before.count("\n"), len(before.rpartition("\n")[2])
        path = tmp_path / name
        path.write_text(before + after, encoding="utf-8")
        document = Document(before + after, str(path), ChosenModel(model))
        return document, Position(line, column)

    return at
