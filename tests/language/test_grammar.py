import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from lark import Lark

from bishare_dsl.language import parse_spec
from bishare_dsl.language.grammar import END, lark, words
from bishare_dsl.resources import grammar, shipped_specs

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners are POSIX's")


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Where the tables would be kept; `lark()` is as in a new process."""
    monkeypatch.setenv("BISHARE_CACHE", str(tmp_path / "cache"))
    lark.cache_clear()
    yield tmp_path / "cache" / "grammar"
    lark.cache_clear()


def test_lark_finds_no_conflict():
    text = grammar("share.lark").read_text(encoding="utf-8")
    assert Lark(text, parser="lalr", lexer="basic", strict=False)
    assert END not in words().values()


def test_the_tables_are_kept_in_a_folder_that_is_closed_to_others(tables):
    parse_spec("spec x target q share s per layer rank 1")
    assert tables.stat().st_mode & 0o777 == 0o700
    (kept,) = tables.iterdir()
    content = kept.read_bytes()
    lark.cache_clear()
    for path in shipped_specs().values():
        assert parse_spec(path.read_bytes(), str(path))
    assert kept.read_bytes() == content


def test_a_damaged_table_is_made_anew(tables):
    lark()
    (kept,) = tables.iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    lark.cache_clear()
    assert parse_spec("spec x target q share s per layer rank 1")


@pytest.mark.parametrize("how", ["open", "other", "link", "file", "linked table", "other's table"])
def test_a_folder_that_others_may_write_is_not_used(tables, how, monkeypatch, tmp_path):
    planted = tmp_path / "planted"
    tables.parent.mkdir()
    if how == "link":
        planted.mkdir(mode=0o700)
        tables.symlink_to(planted)
    elif how == "file":
        tables.write_text("")
    else:
        tables.mkdir(mode=0o700)
    if how == "open":
        tables.chmod(0o770)
    if how == "other":
        monkeypatch.setattr(os, "geteuid", lambda: tables.stat().st_uid + 1)
    if how == "linked table":
        planted.write_bytes(b"")
        (tables / f"share.{sys.implementation.cache_tag}").symlink_to(planted)
    if how == "other's table":
        table = tables / f"share.{sys.implementation.cache_tag}"
        table.write_bytes(b"")
        real = Path.lstat

        def owned(path, info=None):
            found = list(real(path))
            found[stat.ST_UID] += path == table
            return os.stat_result(found)

        monkeypatch.setattr(Path, "lstat", owned)
    read = []
    monkeypatch.setattr("pickle.load", lambda *_: read.append(1))
    assert parse_spec("spec x target q share s per layer rank 1")
    assert not read
    assert not planted.is_file() or not planted.read_bytes()
    assert not (planted.is_dir() and list(planted.iterdir()))


def test_without_a_home_there_is_no_cache(tables, monkeypatch):
    monkeypatch.delenv("BISHARE_CACHE")

    def homeless(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert parse_spec("spec x target q share s per layer rank 1")


def test_reading_imports_no_torch():
    code = (
        "import sys; from bishare_dsl.language import read_file; "
        f"read_file({str(shipped_specs()['lora'])!r}); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'hypothesis')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
