"""Rename a param or a let everywhere: in the file that declares it, in those that use that one, and so on."""

from __future__ import annotations

from collections.abc import Mapping
from os.path import realpath

from lark import Token

from bishare_dsl.language.grammar import IN_EXPRESSIONS
from bishare_dsl.language.syntax import unquoted
from bishare_dsl.language.text import spelled_name
from bishare_dsl.language.use import File
from bishare_dsl.lsp.document import Document
from bishare_dsl.lsp.names import declarations, files_of, name_at, tokens_named
from bishare_dsl.resources import shipped_specs
from bishare_dsl.spec.expression import ATTRIBUTES

Places = dict[str, tuple[File, list[Token]]]
"""The tokens of a name by the file that they are in, and that file."""


class CannotRename(Exception):
    """A name cannot be renamed so; the reason is shown in the editor."""


def places_of(name: str, document: Document, others: Mapping[str, Document]) -> Places:
    """Find a name in a document, in the files that it uses, and in all that share its declaration.

    ``others`` are the specs of the workspace, by their real paths.
    """
    trees = [document.file, *(other.file for other in others.values())]
    declaring = {
        id(tree): {realpath(found.source.name) for found in declarations(tree).get(name, ())}
        for tree in trees
        if tree is not None
    }
    assert document.file is not None
    one_name = declaring[id(document.file)]
    while True:  # A file joins where it sees a declaration that is known, and brings its others.
        more = one_name.union(*(seen for seen in declaring.values() if seen & one_name))
        if more == one_name:
            break
        one_name = more
    joined = [tree for tree in trees if tree is not None and declaring[id(tree)] & one_name]
    found: Places = {}
    # What stands in an editor goes before the same file on the disk, where another text uses it.
    for file in (*joined, *(used for tree in joined for used in files_of(tree))):
        if name in declarations(file) and (tokens := [*tokens_named(file, [name])]):
            found.setdefault(realpath(file.source.name), (file, tokens))
    return found


def find_renames(
    document: Document, offset: int, new: str, others: Mapping[str, Document]
) -> tuple[Places, str]:
    """Find all places of the name at a character, and how the new one is written there.

    Raises:
        CannotRename: there is no name to rename, or the new one will not do.
    """
    if (found := name_at(document, offset)) is None:
        raise CannotRename("only the names of params and lets can be renamed")
    old = unquoted(found[0])
    places = places_of(old, document, others)
    shipped = {realpath(path) for path in shipped_specs().values()}
    if any(path in shipped and path not in others for path in places):
        raise CannotRename(f"`{old}` is declared in a spec that ships with bishare")
    new = new.strip().strip('"')
    if not new or not new.isprintable():
        raise CannotRename("a name has a character at least, and all of them can be printed")
    if new in (*ATTRIBUTES, *IN_EXPRESSIONS, "model"):
        raise CannotRename(f"`{new}` already means something")
    for file, _ in places.values():
        if new in declarations(file):
            raise CannotRename(f"`{new}` is declared in {file.source.name}")
    architecture = document.architecture
    if architecture is not None and new in architecture.kinds:
        raise CannotRename(f"`{new}` is a kind of module of {architecture.name}")
    return places, spelled_name(new)
