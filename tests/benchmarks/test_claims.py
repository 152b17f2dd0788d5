"""What the pages say was measured has a command, a date and a machine, and stands where it is said to stand."""

import datetime
import json

import pytest
from claims import ROOT, STORED, claims, differences, run

CLAIMS = claims()


def name(claim):
    return claim["command"][:60]


@pytest.mark.parametrize("claim", CLAIMS, ids=name)
def test_a_claim_says_how_when_and_where(claim):
    assert isinstance(claim["date"], datetime.date)
    assert claim["machine"]
    assert {"figures", "result", "slow"} & claim.keys()
    for word in claim["command"].split():
        if word.startswith("benchmarks/"):
            assert (ROOT / word).exists()


@pytest.mark.parametrize("claim", [c for c in CLAIMS if "figures" in c], ids=name)
def test_every_figure_stands_on_a_page_of_its_claim(claim):
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in claim["pages"]]
    for figure in claim["figures"]:
        assert any(figure in page for page in pages), figure
    for page in pages:
        assert any(figure in page for figure in claim["figures"])


@pytest.mark.parametrize("claim", [c for c in CLAIMS if "exact" in c], ids=name)
def test_exact_columns_stand_on_the_page(claim):
    page = (ROOT / claim["pages"][0]).read_text(encoding="utf-8")
    for row in json.loads((STORED / f"{claim['result']}.json").read_text())["rows"]:
        # Of the sizes in bfloat16 the page has the ratio alone.
        if row.get("dtype") != "bfloat16":
            assert all(f"{row[column]:,}" in page for column in claim["exact"]), row


def test_counts_are_made_again(tmp_path):
    claim = CLAIMS[0]
    printed = run(claim["command"], tmp_path)
    assert differences(claim, printed, tmp_path) == []
    wrong = claim | {"figures": ["3,593,601"]}
    assert differences(wrong, printed, tmp_path) == ["3,593,601 is not printed"]


def test_results_are_compared_exactly_or_within_a_band(tmp_path):
    claim = next(c for c in CLAIMS if c.get("result") == "switching")
    stored = json.loads((STORED / "switching.json").read_text())
    changed = json.loads(json.dumps(stored))
    changed["rows"][1]["x PEFT"] *= 1.3
    changed["rows"][2]["x PEFT"] *= 1.4
    (tmp_path / "switching.json").write_text(json.dumps(changed))
    [line] = differences(claim, "", tmp_path)
    said = stored["rows"][2]["x PEFT"]
    assert line.startswith(f"bishare_ss, 32, x PEFT: {said} was said")
    exact = claim | {"exact": ["x PEFT"], "ratios": []}
    assert len(differences(exact, "", tmp_path)) == 2
    changed["rows"].pop(0)
    (tmp_path / "switching.json").write_text(json.dumps(changed))
    assert "PEFT LoRA, 32: no such row" in differences(claim, "", tmp_path)


def test_a_command_that_fails_is_told(tmp_path):
    with pytest.raises(SystemExit, match="exit status 2"):
        run("bishare plan no_such_spec -m llama-7b", tmp_path)
