"""A click does what the message advises, and the message is gone."""

import pytest

from bishare_dsl.diagnostics import Edit, Span
from bishare_dsl.lsp.positions import apply_edits
from bishare_dsl.lsp.remedies import code_actions
from tests.lsp.conftest import MODEL

T = "spec s\ntarget q_proj, v_proj\n"


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
            texts[action.title] = apply_edits(document.source, parts)
        return texts

    return mended


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        (T + "sahre a per module rank 4", T + "share a per module rank 4"),
        (T + "share a per module rank = 4", T + "share a per module rank  4"),
        (T + "Share a per module rank 4", T + "share a per module rank 4"),
        (T + "share a per module rank 4 dropout 5%", T + "share a per module rank 4 dropout 0.05"),
        (T + "share a per module rank 4 dropout .05", T + "share a per module rank 4 dropout 0.05"),
        (T + "share a-b per module rank 4", T + "share a_b per module rank 4"),
        (T + "share a per module rank 4;", T + "share a per module rank 4"),
        ("// why\n" + T + "share a per module rank 4", "# why\n" + T + "share a per module rank 4"),
        (T + "share a where layer = 3 per module rank 4", T + "share a where layer == 3 per module rank 4"),
        (T + "share a where layer in 0...8 per module rank 4", T + "share a where layer in 0..8 per module rank 4"),
        (T + "share model per module rank 4", T + 'share "model" per module rank 4'),
        ("spec s\ntarget q_proj v_proj\nshare a per module rank 4", "spec s\ntarget q_proj, v_proj\nshare a per module rank 4"),
        ("spec s\ntarget größe\nshare a per module rank 4", 'spec s\ntarget "größe"\nshare a per module rank 4'),
        ("spec s\ntarget ‘q_proj’\nshare a per module rank 4", 'spec s\ntarget "q_proj"\nshare a per module rank 4'),
        (T + "share a per module", T + "share a per module  rank 8"),
        (T + "share a per module rank 4 rank 8", T + "share a per module rank 4"),
        (T + "share a per module rank 4 via Bsis", T + "share a per module rank 4 via Basis"),
        (T + "share a per module rank 4 via KE(sise = 64)", T + "share a per module rank 4 via KE(size = 64)"),
        (T + "share a per module rank 4 via SS(slice = center)", T + "share a per module rank 4 via SS(slice = centre)"),
        (T + "share a per module rank 4 init A kaiming_unifrm", T + "share a per module rank 4 init A kaiming_uniform"),
        (T + "param r = 4\nshare a per module rank 4", T + "share a per module rank 4"),
        (T + "share a per module rank 4 alpha 8 scale 2", T + "share a per module rank 4 scale 2"),
        (T + "share a per module rank 4\nshare b per layer rank 4 via SS\nalpha 16", T + "share a per module rank 4\nshare b per layer rank 4 via SS\n    alpha 16"),
        (T + "share a per module rank 4 init B normal", T + "share a per module rank 4 init B normal  start nonzero"),
        ("# model: lama-7b\n" + T + "share a per module rank 4", MODEL + T + "share a per module rank 4"),
        (MODEL + "spec s\ntarget q_porj, v_proj\nshare a per module rank 4", MODEL + "spec s\ntarget q_proj, v_proj\nshare a per module rank 4"),
        (MODEL + 'spec s\ntarget path "model.layers.3.mlp.up_prj"\nshare a per module rank 4', MODEL + 'spec s\ntarget path "model.layers.3.mlp.up_proj"\nshare a per module rank 4'),
        ('spec s\nuse "lroa"\n', 'spec s\nuse "lora"\n'),
        ('spec s\nuse "lora"\nparam r = 4\n', 'spec s\nuse "lora"\nreplace param r = 4\n'),
        (T + "replace share a per module rank 4", T + "share a per module rank 4"),
        ("target q_proj\nshare a per module rank 4", "spec mine\ntarget q_proj\nshare a per module rank 4"),
        (T + "share a per module rank r\nparam r = 4", T + "param r = 4\nshare a per module rank r\n"),
        (T + "param p = 0.1\nshare a per module rank 4\nlet l = q_proj\ndropout p", T + "param p = 0.1\ndropout p\nshare a per module rank 4\nlet l = q_proj\n"),
        ('spec s\ntarget q_proj\nuse "lora"\n', 'spec s\nuse "lora"\ntarget q_proj\n\n'),
    ],
)  # fmt: skip
def test_remedy(mended, text, fixed):
    found = list(mended(text).values())
    assert (fixed in found) if fixed is not None else not found


def test_what_may_be_meant_in_several_ways_is_offered_in_several(mended):
    text = MODEL + "spec s\ntarget q_proj, up_proj\nshare a per layer rank 4"
    found = mended(text)
    assert found["Write `via KE`"] == text + "  via KE"
    assert found["Write `per layer, kind`"] == text.replace("per layer", "per layer, kind")


def test_a_spec_without_mistakes_has_nothing_to_mend(mended):
    assert mended(T + "share a per module rank 4") == {}


@pytest.mark.parametrize(
    "text",
    [
        "init A normal, C zeros\n{T}share a per module rank 4",
        "init C zeros, A normal\n{T}share a per module rank 4",
        "{T}share a per module rank 4 init A normal, A ones",
        "{T}share a per module rank 4 gain out init 1, out init 2",
        "{T}share a per layer rank 4 via KE(size = 64, size = 32)",
        "{T}share a per module rank 4 freeze A, A",
    ],
)
def test_what_is_needless_in_a_list_takes_no_other_part_with_it(mended, text):
    text = f"{MODEL}spec s\n{text.format(T='target q_proj, v_proj' + chr(10))}"
    assert "Leave it out" not in mended(text)
