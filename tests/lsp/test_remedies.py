"""A click does what the message advises, and the message is gone."""

import pytest

from bishare_dsl.diagnostics import Edit, Span
from bishare_dsl.lsp.remedies import code_actions
from tests.lsp.conftest import MODEL

T = "spec s\ntarget q_proj, v_proj\n"


def written(text, edits):
    for edit in sorted(edits, key=lambda edit: -edit.span.start):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    return text


@pytest.fixture
def mended(at):
    """The texts that the remedies of a text make, by their titles."""

    def mended(text):
        document, _ = at(text)
        whole = document.positions.range(Span(0, len(text)))
        texts = {}
        for action in code_actions(document, "file:///my.share", whole):
            [edits] = action.edit.changes.values()
            parts = tuple(
                Edit(Span(*(document.positions.offset(p) for p in (e.range.start, e.range.end))), e.new_text)
                for e in edits
            )  # fmt: skip
            texts[action.title] = written(text, parts)
        return texts

    return mended


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        (T + "sahre a per module rank 4", T + "share a per module rank 4"),
        ("spec s\ntarget größe\nshare a per module rank 4", 'spec s\ntarget "größe"\nshare a per module rank 4'),
        (T + "share a per module rank 4 via Bsis", T + "share a per module rank 4 via Basis"),
        (MODEL + "spec s\ntarget q_porj, v_proj\nshare a per module rank 4", MODEL + "spec s\ntarget q_proj, v_proj\nshare a per module rank 4"),
        ('spec s\nuse "lroa"\n', 'spec s\nuse "lora"\n'),
        ('spec s\nuse "lora"\nparam r = 4\n', 'spec s\nuse "lora"\nreplace param r = 4\n'),
        (T + "replace share a per module rank 4", T + "share a per module rank 4"),
        ("target q_proj\nshare a per module rank 4", "spec mine\ntarget q_proj\nshare a per module rank 4"),
        (T + "share a per module rank r\nparam r = 4", T + "param r = 4\nshare a per module rank r\n"),
        ('spec s\ntarget q_proj\nuse "lora"\n', 'spec s\nuse "lora"\ntarget q_proj\n\n'),
    ],
)  # fmt: skip
def test_remedy(mended, text, fixed):
    assert fixed in mended(text).values()


def test_what_shares_most_is_offered_and_nothing_without_a_mistake(mended):
    text = MODEL + "spec s\ntarget q_proj, up_proj\nshare a per layer rank 4"
    assert text + " via SS" in mended(text).values()
    assert mended(T + "share a per module rank 4") == {}
