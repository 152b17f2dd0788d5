"""The grammar for tree-sitter reads what bishare reads: its parser, compiled, and its colours."""

import ctypes
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from tree_sitter import Language, Parser, Query, QueryCursor

from bishare_dsl.highlight.rules import COMMENT, tokens
from bishare_dsl.language import spec_text
from bishare_dsl.language.grammar import words
from tests.docs.test_examples import BLOCKS
from tests.highlight.test_rules import TEXTS
from tests.support.specs import specs

FOLDER = Path(__file__).parents[2] / "editors" / "tree-sitter"


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    library = tmp_path_factory.mktemp("tree-sitter") / "share.so"
    source = FOLDER / "src" / "parser.c"
    subprocess.run(
        ["cc", "-shared", "-fPIC", f"-I{source.parent}", source, "-o", library], check=True
    )
    make = ctypes.CDLL(str(library)).tree_sitter_share
    make.restype = ctypes.c_void_p
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype = ctypes.py_object
    capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return Language(capsule(make(), b"tree_sitter.Language", None))


def leaves(node):
    return [leaf for child in node.children for leaf in leaves(child)] or [node]


def wrong(node):
    """The places of what could not be read, or is missing."""
    here = [node.start_point] if node.is_error or node.is_missing else []
    return here + [place for child in node.children for place in wrong(child)]


def tree_of(language, text):
    return Parser(language).parse(text.encode()).root_node


def is_readable(name):
    """Some examples of the docs are of errors in the text; their codes say so."""
    codes = next((block.values("error") for block in BLOCKS if block.place == name), ())
    return not any("BS100" <= code < "BS120" for code in codes)


@pytest.mark.parametrize("name", [*filter(is_readable, TEXTS)])
def test_every_spec_and_every_example_is_read_whole(language, name):
    text = TEXTS[name]
    root = tree_of(language, text)
    assert not wrong(root)
    # Its words are those of the parser; a string and a comment are one leaf each.
    data = text.encode()
    found = [data[leaf.start_byte : leaf.end_byte].decode() for leaf in leaves(root)]
    assert found == [text[start:end] for start, end, _ in tokens(text)]


@given(spec=specs())
def test_drawn_specs_are_read_whole(language, spec):
    text = spec_text(spec)
    assert not wrong(tree_of(language, text)), text


@pytest.mark.parametrize(
    "text", ["sahre a per module", "spec s target", "share a rank = 4", "target q_proj v_proj"]
)
def test_what_is_no_spec_has_an_error(language, text):
    assert wrong(tree_of(language, text))


def test_clauses_belong_to_their_share(language):
    root = tree_of(language, "scale 2 share a per layer scale 3 param p = 1 dropout p")
    assert [child.type for child in root.children] == ["scale", "share", "param", "dropout"]
    clauses = [child.type for child in root.children[1].named_children]
    assert clauses == ["identifier", "per", "scale"]


def test_every_word_and_sign_of_the_grammar_is_in_it():
    def strings(rule):
        if isinstance(rule, dict):
            if rule.get("type") == "STRING":
                yield rule["value"]
            for value in rule.values():
                yield from strings(value)
        elif isinstance(rule, list):
            for value in rule:
                yield from strings(value)

    grammar = json.loads((FOLDER / "src" / "grammar.json").read_text(encoding="utf-8"))
    # `plain` is a word behind `magnitude` alone; elsewhere it is a name, so it is not reserved.
    assert set(strings(grammar["rules"])) == {*words(), "plain"}


@pytest.mark.parametrize("name", TEXTS)
def test_all_but_white_space_has_a_colour(language, name):
    query = Query(language, (FOLDER / "queries" / "highlights.scm").read_text(encoding="utf-8"))
    root = tree_of(language, TEXTS[name])
    coloured = {
        (node.start_byte, node.end_byte)
        for nodes in QueryCursor(query).captures(root).values()
        for node in nodes
    }
    if not wrong(root):
        assert not [
            leaf.text for leaf in leaves(root) if (leaf.start_byte, leaf.end_byte) not in coloured
        ]


def test_colours_mean_what_pygments_means(language):
    text = "share intra per layer rank r via KE(size = 3)  # note"
    query = Query(language, (FOLDER / "queries" / "highlights.scm").read_text(encoding="utf-8"))
    captures = QueryCursor(query).captures(tree_of(language, text))
    found = {node.text.decode(): name for name, nodes in captures.items() for node in nodes}
    assert sum(map(len, captures.values())) == len(found)
    assert found["intra"] == "type"
    assert found["layer"] == "variable.builtin"
    assert found["KE"] == "constructor"
    assert found["size"] == "property"
    assert found["# note"] == "comment"
    assert COMMENT in [part for _, _, part in tokens(text)]
