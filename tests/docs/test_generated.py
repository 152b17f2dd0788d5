"""What is written by a program is what the program would write now."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from bishare_dsl.cli.main import main as bishare
from bishare_dsl.language import read_file
from bishare_dsl.resources import shipped_specs
from tools.editors import grammar, schema

ROOT = Path(__file__).parents[2]


def test_picture(tmp_path):
    """`make docs` writes it."""
    images = ROOT / "docs" / "images"
    command = ["show", images / "sharing.share", "--model", images / "six-layers.json", "--quiet"]
    assert bishare([*map(str, command), "--svg", str(tmp_path / "new.svg")]) == 0
    assert (tmp_path / "new.svg").read_bytes() == (images / "sharing.svg").read_bytes()


def test_colours_for_editors():
    """`make docs` writes them."""
    file = ROOT / "editors" / "vscode" / "syntaxes" / "share.tmLanguage.json"
    assert file.read_text(encoding="utf-8") == grammar()


def test_json_schema():
    """`make docs` writes it."""
    file = ROOT / "editors" / "spec.schema.json"
    assert file.read_text(encoding="utf-8") == schema()


@pytest.mark.parametrize("name", shipped_specs())
def test_every_spec_that_ships_fits_the_json_schema(name):
    spec = read_file(shipped_specs()[name])[0].model_dump(mode="json")
    jsonschema.validate(spec, json.loads(schema()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spec | {"shares": [{"name": "a"}]}, json.loads(schema()))


def test_numbers_of_the_readme():
    """What it says was measured is what the report of the benchmark says."""
    readme, report = (
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("README.md", "benchmarks/notes/2026-11-27-quality.md")
    )
    table = readme[readme.index("| | of LoRA's parameters") :].split("\n\n")[0].splitlines()[2:]
    figure = r"\d+\.\d ± \d+\.\d|\d+\.\d%|[-+]\d+\.\d to [-+]\d+\.\d"
    figures = [found for row in table for found in re.findall(figure, row)]
    assert len(figures) >= 8
    assert not [figure for figure in figures if figure not in report]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100
