"""Probe cards: written for any LoRA, and judged without weights and without torch."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.verify.answers import Asked
from bishare_dsl.verify.card import MOST_BYTES, Card, judge_card, read_card
from tests.support.parts import quick
from tests.verify.served import Engine, ask_one, save_lora, serving


@pytest.fixture(scope="module")
def several(base):
    root = base.parent / "carded"
    return [save_lora(root / name, base, seed=i) for i, name in enumerate("abc")]


@pytest.fixture(scope="module")
def card(base, several):
    from bishare_dsl.cli.main import main

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
        ("b", "OTHER TENSORS"),
        ("c", "OTHER TENSORS"),
        ("half", "AS IF"),
        ("weak", "NOT APPLIED"),
        ("base_again", "NOT APPLIED"),
    ],
)
@pytest.mark.parametrize("ids", [True, False])
def test_a_server_is_judged_by_the_card(engine, card, name, word, ids):
    from bishare_dsl.verify.server import Server

    engine.ids = ids  # Without ids, a server tells the texts of tokens.
    try:
        found = judge_card(read_card(card), ask_one(Server(engine.url), name))
    finally:
        engine.ids = True
    assert found.word == word, (found.why, found.numbers)
    if name == "half":
        assert found.numbers["slope"] == pytest.approx(0.5, abs=0.15)
    if name == "weak":
        assert "or something much weaker" in found.why
    assert found.unseen == ["each part of the adapter: a card proves the whole"]


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
    run = subprocess.run(
        [*map(str, command), "--name", "base_again"], capture_output=True, text=True
    )
    assert (run.returncode, "error[BS870]" in run.stderr) == (1, True), run.stderr
    assert "files     a card of a on base" in run.stdout
    run = subprocess.run([*map(str, command), "--name", "nobody"], capture_output=True, text=True)
    assert (run.returncode, "error[BS870]" in run.stderr) == (1, True)
    assert "verdict   NOT THERE" in run.stdout


def test_a_card_is_small_and_as_the_schema_says(card):
    import jsonschema

    text = card.read_text()
    assert len(text) <= MOST_BYTES
    found = json.loads(text)
    jsonschema.validate(found, Card.model_json_schema())
    assert (found["format"], found["adapter"], found["dtype"]) == (1, "a", "float32")
    assert len(found["fingerprint"]["linear"]) == 24
    assert len(found["probes"]) == 8
    for probe in found["probes"]:
        assert all(
            math.isfinite(x) and x <= 0 for *_, one, other in probe["tokens"] for x in (one, other)
        )


def edited(card, tmp_path, edit):
    found = json.loads(card.read_text())
    edit(found)
    path = tmp_path / "card.json"
    path.write_text(json.dumps(found))
    return path


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c.update(format=2), "format: Input should be 1"),
        (lambda c: c.pop("adapter"), "adapter: Field required"),
        (lambda c: c.update(probes=[]), "probes: List should have at least 1 item"),
        (lambda c: c["probes"][0]["tokens"].append([1, "a", float("nan"), -1]), "finite number"),
        (lambda c: c["probes"][0]["tokens"].append([1, "a", 0.5, -1]), "less than or equal to 0"),
        (lambda c: c["probes"][0]["tokens"].append([-1, "a", -1, -1]), "greater than or equal"),
    ],
)
def test_a_wrong_card_is_refused(bishare, card, tmp_path, edit, said):
    path = edited(card, tmp_path, edit)
    with pytest.raises(BishareError, match=f"BS876.*{said}"):
        read_card(path)
    run = bishare("verify", "--card", path, "--server", "http://127.0.0.1:9/v1")
    assert "BS876" in run.err
    assert run.code in (1, 2)


def test_no_card_at_all(tmp_path):
    with pytest.raises(BishareError, match="BS876"):
        read_card(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(BishareError, match="BS876"):
        read_card(tmp_path / "text.json")


def answers(card, scale, noise=0.0, seed=0):
    """A server's answers that move by this part of the card's difference, with rounding."""
    random = torch.Generator().manual_seed(seed)

    def rounded(value):
        return min(0.0, value + noise * float(torch.randn((), generator=random)))

    base = [{i: rounded(b) for i, _, b, _ in p.tokens} for p in card.probes]
    mine = [{i: rounded(b + scale * (a - b)) for i, _, b, a in p.tokens} for p in card.probes]
    return Asked(base, mine, noise=1e-9)


@pytest.mark.parametrize(
    ("scale", "word"),
    [(0.7, "AS IF"), (0.8, "APPLIED"), (1.3, "APPLIED"), (1.4, "AS IF"), (-1, "OTHER TENSORS")],
)
def test_slopes_between_three_quarters_and_four_thirds_are_applied(card, scale, word):
    found = judge_card(read_card(card), answers(read_card(card), scale))
    assert found.word == word, found.why


def test_a_server_that_rounds_more_than_the_effect_is_unknown(card):
    found = judge_card(read_card(card), answers(read_card(card), 1, noise=3.0))
    assert (found.word, "near the server's rounding" in found.why) == ("cannot be judged", True)


def test_other_tokens_are_unknown(card):
    base = [{10**6 + i: -1.0 - i - t for i in range(20)} for t in range(8)]
    mine = [{10**6 + i: -2.0 - i - t for i in range(20)} for t in range(8)]
    found = judge_card(read_card(card), Asked(base, mine, noise=0.0))
    assert (found.word, "other tokens" in found.why) == ("cannot be judged", True)


def test_a_card_is_for_one_adapter_whose_files_fit(bishare, base, several, tmp_path):
    out = tmp_path / "card.json"
    command = ["verify", several[0], "--model"]
    assert bishare(*command, base, several[1], "--write-card", out).code == 2
    assert "BS512" in bishare(*command, base / "config.json", "--write-card", out).err
    assert not out.exists()


def test_a_dora_has_a_card(bishare, base, tmp_path):
    folder = save_lora(tmp_path / "dora", base, use_dora=True)
    out = tmp_path / "card.json"
    run = bishare("verify", folder, "--model", base, "--write-card", out)
    assert run.code == 0, run.err
    assert read_card(out).adapter == "dora"


pytest_plugins = ["bishare_dsl.testing.cards"]


def test_the_fixture_for_the_tests_of_an_engine(engine, card, assert_applied):
    assert_applied(str(card), engine.url)
    with pytest.raises(AssertionError, match=r"NOT APPLIED: .* bit for bit"):
        assert_applied(str(card), engine.url, name="base_again")


def test_the_published_schema_is_that_of_the_code():
    path = Path(__file__).parents[2] / "docs" / "probe-card.schema.json"
    assert json.loads(path.read_text("utf-8")) == Card.model_json_schema()
