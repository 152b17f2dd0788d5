"""`inspect` over run folders: one table, and its files."""

import csv
import importlib.util
import json
from pathlib import Path
from random import Random

import pytest

from tests.cli.test_grid import COMMON, GRID, folder  # noqa: F401 - a fixture

FILES = [
    *("--out", "t.csv", "--out", "t.md", "--out", "t.tex"),
    *("--out", "p.svg", "--out", "p.pdf"),
]


def test_a_grid_becomes_a_table_and_its_files(bishare, folder):  # noqa: F811
    assert bishare(*GRID, "--seed", "0,1").code == 0
    run = bishare("inspect", "runs", *FILES, "--out", "p.png", "--baseline", "small r=3")
    assert run.code == 0, run.err
    head, _, first, second = run.out.splitlines()[:4]
    assert head.split("  ")[0] == "spec"
    assert first.startswith("small r=3")
    assert second.startswith("other r=3")
    assert "held-out loss  beside small r=3" in " ".join(head.split()).replace("loss b", "loss  b")
    assert "*" in first  # Of two rates, each is an edge.
    assert "It says nothing on other rows or data" in run.out
    rows = [*csv.DictReader(Path("t.csv").read_text().splitlines())]
    assert {(row["spec"], row["rate"], row["seed"]) for row in rows} == {
        (spec, rate, seed) for spec in ("small r=3", "other r=3")
        for rate in ("0.001", "0.02") for seed in "01"
    }  # fmt: skip
    record = json.loads(Path(rows[0]["folder"], "run.json").read_text())["record"]["results"]
    losses = [float(loss) for loss in record["held_out"]["losses"].split()]
    Random(0).shuffle(losses)
    assert float(rows[0]["choosing"]) == pytest.approx(sum(losses[::2]) / len(losses[::2]))
    assert float(rows[0]["judging"]) == pytest.approx(sum(losses[1::2]) / len(losses[1::2]))
    assert "| spec | parameters |" in Path("t.md").read_text()
    tex = Path("t.tex").read_text()
    for part in ("small r=3 & ", r"$\pm$", r"\bottomrule", "% held-out loss (less is better)"):
        assert part in tex
    assert "<svg" in Path("p.svg").read_text()
    assert Path("p.pdf").read_bytes()[:5] == b"%PDF-"
    assert Path("p.png").read_bytes()[:4] == b"\x89PNG"
    before = {name: Path(name).read_bytes() for name in FILES[1::2]}
    assert bishare("inspect", "runs", *FILES, "--baseline", "small r=3").code == 0
    assert {name: Path(name).read_bytes() for name in before} == before

    # Another number of steps, and a run of a spec without rows, among them.
    words = ["--output_dir", "runs/shorter", "--max_steps", 2]
    assert bishare("train", "small.share", *COMMON, *words).code == 0
    run = bishare("inspect", "runs", "--json")
    assert "shorter is not compared: its steps differ" in "\n".join(json.loads(run.out)["notes"])
    # One run is shown as an adapter.
    assert "all as they were saved" in bishare("inspect", "runs/shorter").out


def test_what_is_wrong_with_a_comparison(bishare, folder, monkeypatch):  # noqa: F811
    Path("runs").mkdir()
    run = bishare("inspect", "runs", "--out", "t.tex")
    assert (run.code, "BS911" in run.err) == (2, True)
    run = bishare("inspect", "runs", "--out", "t.doc")
    assert (run.code, "none of the endings .csv, .md, .tex" in run.err) == (2, True)
    Path("paper.tex").write_text("mine")
    run = bishare("inspect", "runs", "--out", "paper.tex")
    assert (run.code, "BS618" in run.err) == (2, True)
    assert Path("paper.tex").read_text() == "mine"
    find = importlib.util.find_spec
    missing = lambda name: None if name == "matplotlib" else find(name)  # noqa: E731
    monkeypatch.setattr("bishare_dsl.train.export.find_spec", missing)
    run = bishare("inspect", "runs", "--out", "t.svg")
    assert (run.code, "pip install 'bishare[plot]'" in run.err) == (2, True)
    assert not [*Path().glob("t.*")]


def test_the_card_of_a_run_is_filled_from_its_record_and_carried_by_convert(bishare, folder):  # noqa: F811
    words = [*COMMON, "--learning_rate", "2e-2", "--output_dir", "alone"]
    assert bishare("train", "small.share", *words).code == 0
    card = Path("alone/README.md").read_text()
    results = json.loads(Path("alone/run.json").read_text())["record"]["results"]
    for line in (
        "- data: `rows.jsonl`, 12 examples (sha256 ",
        "- steps: 3 of 2 examples, 0.5 epochs",
        "- learning rate: 0.02, after 0 steps of warm-up",
        "- seed: 0",
        f"- held-out loss: {results['eval_loss']:.4g}",
    ):
        assert line in card, card
    assert "Fill in: the data" not in card
    run = bishare("train", "--config", "alone/run.json", "--output_dir", "again")
    assert (run.code, "not as in the run" in run.err) == (0, False)
    for target in ("peft", "bishare"):
        words = ["convert", "alone", "--model", "tiny", "--for", target, "--out", target]
        assert bishare(*words).code == 0
        carried = Path(target, "README.md").read_text()
        assert card.split("## Training")[1].split("## Licence")[0].strip() in carried
