"""The highlighter sees the tokens that the parser sees, in every spec that ships or that a page shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bishare_dsl.highlight import rules
from bishare_dsl.highlight.rules import tokens
from bishare_dsl.language.grammar import BAD, CONTEXTUAL, lex, words
from bishare_dsl.resources import shipped_specs
from tests.docs.test_examples import BLOCKS

TEXTS = {name: path.read_text(encoding="utf-8") for name, path in shipped_specs().items()}
TEXTS |= {block.place: block.text for block in BLOCKS if block.language == "share"}


def of_the_parser(text):
    """The dot of a reference is one for the parser alone, which knows where it can stand."""
    return [
        (token.start_pos, token.end_pos, token.type)
        for token in lex(text, everything=True)
        if token.type not in ("SPACE", "COMMENT")
    ]


@pytest.mark.parametrize("name", TEXTS)
def test_every_spec_is_cut_as_the_parser_cuts_it(name):
    found = [token for token in tokens(TEXTS[name]) if token[2] is not rules.COMMENT]
    parsed = of_the_parser(TEXTS[name])
    assert [token[:2] for token in found] == [token[:2] for token in parsed]
    for (start, end, part), (_, _, kind) in zip(found, parsed, strict=True):
        allowed = {
            "NAME": {rules.NAME, rules.ATTRIBUTE, rules.DECLARED, rules.FUNCTION, rules.TRANSFORM},
            "STRING": {rules.STRING},
            "INT": {rules.NUMBER},
            "FLOAT": {rules.NUMBER},
            BAD: {rules.WRONG},
        }
        keyword = {rules.STATEMENT, rules.CLAUSE, rules.WORD_OPERATOR}
        sign = {rules.OPERATOR, rules.PUNCTUATION}
        word = TEXTS[name][start:end]
        if word in CONTEXTUAL:  # The parser decides what it is.
            allowed = {}
        assert part in allowed.get(kind, keyword if word.isalpha() else sign), word


@given(st.text(st.sampled_from('abshare per via KE(,)1.5e3"#\n{}é_=<>/*..'), max_size=60))
def test_any_text_is_cut_without_a_rest(text):
    end = 0
    for start, stop, _ in tokens(text):
        assert end <= start < stop
        assert not text[end:start].strip()
        end = stop
    assert not text[end:].strip()


@pytest.mark.parametrize("word", sorted(words()))
def test_every_word_and_sign_of_the_grammar_is_known(word):
    [(start, end, part)] = tokens(word)
    assert (start, end) == (0, len(word))
    assert part is not rules.WRONG
    # Words of a gate are names elsewhere, such as a param `top`.
    assert (part is rules.NAME) == (word in ("of", "softmax", "top", "x"))


@pytest.mark.parametrize("gate", ["gate softmax of A x", "gate top", "gate softmax of x"])
def test_words_of_a_gate_are_keywords_inside_of_it(gate):
    assert [part for _, _, part in tokens(gate)] == [rules.CLAUSE] * len(gate.split())


def test_what_names_are():
    text = "share intra per layer rank r via KE(size = 3)  # note"
    scopes = (
        "keyword.control entity.name.type keyword.other variable.language keyword.other variable.other "
        "keyword.other support.class punctuation variable.other punctuation constant.numeric punctuation "
        "comment.line.number-sign"
    )
    assert [part.scope for _, _, part in tokens(text)] == scopes.split()


def test_what_is_unreadable_is_wrong():
    assert [part for _, _, part in tokens('"open')] == [rules.WRONG]
    assert rules.WRONG in [part for _, _, part in tokens("rank 4x")]
