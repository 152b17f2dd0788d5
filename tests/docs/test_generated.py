"""What is written by a program is what the program would write now."""

import io
import json
import re
from pathlib import Path

import jsonschema

from bishare_dsl.cli.main import main as bishare
from bishare_dsl.language import read_file
from bishare_dsl.resources import shipped_specs
from bishare_dsl.version import __version__
from tools.editors import grammar, schema

ROOT = Path(__file__).parents[2]


def test_the_picture_is_of_the_spec_in_the_readme(tmp_path, monkeypatch):
    """`make docs` draws the first spec of the README, on a model of six layers."""
    images = ROOT / "docs" / "images"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    spec = re.search(r"^```share.*?\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)[1]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(spec.encode())))
    command = ["show", "-", "--model", str(images / "six-layers.json"), "--quiet"]
    assert bishare([*command, "--out", str(tmp_path / "new.svg")]) == 0
    assert (tmp_path / "new.svg").read_bytes() == (images / "sharing.svg").read_bytes(), "make docs"


def test_files_for_editors():
    """`make docs` writes them."""
    made = {"vscode/syntaxes/share.tmLanguage.json": grammar(), "spec.schema.json": schema()}
    for name, text in made.items():
        assert (ROOT / "editors" / name).read_text(encoding="utf-8") == text


def test_every_spec_that_ships_fits_the_json_schema():
    validator = jsonschema.Draft202012Validator(json.loads(schema()))
    for file in shipped_specs().values():
        spec = read_file(file)[0].model_dump(mode="json")
        validator.validate(spec)
        assert not validator.is_valid(spec | {"shares": [{"name": "a"}]})


def test_a_release_has_one_version_and_one_date():
    manifest = ROOT / "editors" / "vscode" / "package.json"
    assert json.loads(manifest.read_text(encoding="utf-8"))["version"] == __version__
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    # Above it may stand what is not released yet.
    release, day = re.search(r"^## \[(\d\S*)\] - (\S+)$", changes, re.MULTILINE).groups()
    assert release == __version__
    assert f"\nversion: {__version__}\ndate-released: {day}\n" in cited
