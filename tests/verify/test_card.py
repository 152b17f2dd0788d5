"""Probe cards: written for any LoRA, and judged without weights and without torch."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bishare_dsl.cli.main import main
from bishare_dsl.verify.card import MOST_BYTES, Card, read_card
from bishare_dsl.verify.judge import Verdict, judge
from bishare_dsl.verify.server import Server
from tests.support.parts import quick
from tests.support.served import Engine, ask_one, save_lora, serving


@pytest.fixture(scope="module")
def several(base):
    root = base.parent / "carded"
    return [save_lora(root / name, base, seed=i) for i, name in enumerate("abc")]


@pytest.fixture(scope="module")
def card(base, several):
    path = several[0].parent / "card.json"
    assert main(["verify", str(several[0]), "--model", str(base), "--write-card", str(path)]) == 0
    return path


@pytest.fixture(
    scope="module", params=quick([torch.float32, torch.bfloat16], [torch.float32]), ids=str
)
def engine(request, base, several):
    found = Engine(base, request.param)
    for folder in several:
        found.load(folder.name, folder)
    found.adapters["base_again"] = {}
    half = {p: (a, b, s / 2) for p, (a, b, s) in found.adapters["a"].items()}
    weak = {p: (a, b, s / 1000) for p, (a, b, s) in found.adapters["a"].items()}
    found.adapters |= {"half": half, "weak": weak}
    with serving(found) as url:
        found.url = url
        yield found


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("a", "APPLIED"),
        ("b", "ANOTHER ADAPTER"),
        ("c", "ANOTHER ADAPTER"),
        ("half", "AS IF SCALED"),
        ("weak", "NOT APPLIED"),
        ("base_again", "NOT APPLIED"),
    ],
)
@pytest.mark.parametrize("tells", ["ids", "texts of tokens", "greedy texts"])
def test_a_server_is_judged_by_the_card(engine, card, name, word, tells):
    engine.ids, engine.scores = tells == "ids", tells != "greedy texts"
    try:
        found = judge(Verdict(name), ask_one(Server(engine.url), name), read_card(card).expected())
    finally:
        engine.ids = engine.scores = True
    if tells == "greedy texts":  # These say whether it is base or adapter.
        word = {"ANOTHER ADAPTER": "UNKNOWN", "AS IF SCALED": "UNKNOWN"}.get(word, word)
    assert found.word == word, (found.why, found.numbers)
    if name == "half" and tells != "greedy texts":
        assert found.numbers["slope"] == pytest.approx(0.5, abs=0.15)


def test_the_command_needs_neither_torch_nor_weights(engine, card):
    blocked = ("torch", "transformers", "peft", "accelerate")
    code = f"""
import sys
for name in {blocked}:
    sys.modules[name] = None
from bishare_dsl.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "verify", "--card", card, "--server", engine.url]
    run = subprocess.run([*map(str, command), "--json"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (row,) = json.loads(run.stdout)["rows"]
    assert (row["adapter"], row["word"]) == ("a", "APPLIED")
    twice = [*map(str, command), "--card", card, "--json"]
    run = subprocess.run(twice, capture_output=True, text=True)
    assert len(json.loads(run.stdout)["rows"]) == 2  # Of one name, such as two bases have.
    run = subprocess.run(
        [*map(str, command), "--name", "base_again"], capture_output=True, text=True
    )
    assert (run.returncode, "error[BS870]" in run.stderr) == (1, True), run.stderr
    assert "files       a card of a on base" in run.stdout
    run = subprocess.run([*map(str, command), "--name", "nobody"], capture_output=True, text=True)
    assert (run.returncode, "error[BS870]" in run.stderr) == (1, True)
    assert "verdict     NOT THERE" in run.stdout


def test_a_card_is_small_and_as_the_schema_says(card):
    import jsonschema

    text = card.read_text()
    assert len(text) <= MOST_BYTES
    found = json.loads(text)
    jsonschema.validate(found, Card.model_json_schema())
    assert (found["format"], found["adapter"], found["dtype"]) == (1, "a", "float32")
    assert len(found["fingerprint"]["linear"]) == 24
    assert found["fingerprint"]["tokenizer"] == found["tokenizer"]
    assert len(found["probes"]) == 8
    for probe in found["probes"]:
        assert len(probe["greedy"]) == 2
        assert all(
            math.isfinite(x) and x <= 0 for *_, one, other in probe["tokens"] for x in (one, other)
        )


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c.update(format=2), "format: Input should be 1"),
        (lambda c: c.pop("adapter"), "adapter: Field required"),
        (lambda c: c.update(probes=[]), "probes: List should have at least 1 item"),
        (lambda c: c["probes"][0]["tokens"].append([1, "a", float("nan"), -1]), "finite number"),
        (lambda c: c["probes"][0]["tokens"].append([1, "a", 0.5, -1]), "less than or equal to 0"),
        (lambda c: c["probes"][0]["tokens"].append([-1, "a", -1, -1]), "greater than or equal"),
        (lambda c: c["probes"][0].update(greedy=["one"]), "greedy.1: "),
        (None, "Expecting value"),
    ],
)
def test_a_wrong_card_is_refused(bishare, card, tmp_path, edit, said):
    found = json.loads(card.read_text())
    path = tmp_path / "card.json"
    assert "BS876" in bishare("verify", "--card", path, "--server", "http://127.0.0.1:9/v1").err
    path.write_text("" if edit is None or edit(found) is found else json.dumps(found))
    run = bishare("verify", "--card", path, "--server", "http://127.0.0.1:9/v1")
    assert (run.code in (1, 2), "BS876" in run.err, said in run.err) == (True, True, True), run.err


def test_a_card_is_for_one_adapter_whose_files_fit(bishare, base, several, tmp_path):
    out = tmp_path / "card.json"
    command = ["verify", several[0], "--model"]
    assert bishare(*command, base, several[1], "--write-card", out).code == 2
    assert "BS512" in bishare(*command, base / "config.json", "--write-card", out).err
    assert not out.exists()
    folder = save_lora(tmp_path / "dora", base, use_dora=True)
    run = bishare("verify", folder, "--model", base, "--write-card", out)
    assert (run.code, read_card(out).adapter) == (0, "dora"), run.err


pytest_plugins = ["bishare_dsl.testing.cards"]


def test_the_fixture_for_the_tests_of_an_engine(engine, card, assert_applied):
    assert_applied(str(card), engine.url)
    with pytest.raises(AssertionError, match=r"NOT APPLIED: .* bit for bit"):
        assert_applied(str(card), engine.url, name="base_again")


def test_the_published_schema_is_that_of_the_code():
    path = Path(__file__).parents[2] / "docs" / "probe-card.schema.json"
    assert json.loads(path.read_text("utf-8")) == Card.model_json_schema()


@pytest.mark.parametrize("content", [b"", b"{}", b"\x89PNG", None])
def test_a_card_replaces_a_card_and_no_other_file(base, several, card, tmp_path, capsys, content):
    place = tmp_path / "card.json"
    place.write_bytes(card.read_bytes() if content is None else content)
    before = place.read_bytes()
    command = ["verify", str(several[1]), "--model", str(base), "--write-card", str(place)]
    code = main(command)
    if content:
        assert code == 2
        error = capsys.readouterr().err
        assert "error[BS618]" in error
        assert "it is no card" in error
        assert "loading" not in error  # It is refused before the first step.
        assert place.read_bytes() == before
    else:
        assert code == 0
        assert read_card(place).adapter == several[1].name
    assert main([*command[:-1], str(tmp_path)]) == 2  # A folder is none, either.
