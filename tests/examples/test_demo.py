"""The demo on a tiny model: it says how long it takes, compares, lists and asks, and nobody else speaks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
START = """
import sys
sys.path.insert(0, {examples!r})
import smollm2
smollm2.smollm2_folder = lambda cache=None: {model!r}
import demo
sys.argv = ["demo.py", "--steps", "2"]
demo.main()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    tiny_model("llama", hidden_size=64, max_position_embeddings=256).save_pretrained(folder / "m")
    tiny_tokenizer().save_pretrained(folder / "m")
    code = START.format(examples=str(EXAMPLES), model=str(folder / "m"))
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.long
def test_it_tells_the_time_first_and_says_nothing_else(run):
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("This takes about 2 minutes on two idle cores")
    assert run.stderr == ""


@pytest.mark.long
def test_each_way_has_a_score_and_bytes(run):
    lines = [re.split(r" {2,}", line) for line in run.stdout.splitlines()]
    rows = {line[0]: line for line in lines if len(line) == 4 and "of 144" in line[3]}
    own = {}
    for name in ("LoRA r=8", "LoRA r=1 on one module", "library_core"):
        _, numbers, size, score = rows[name]
        assert re.fullmatch(r"\d+ of 144", score)
        own[name] = int(numbers.replace(",", ""))
        assert own[name] * 4 <= int(size.replace(",", ""))
    assert own["library_core"] < own["LoRA r=8"] / 10


@pytest.mark.long
def test_six_adapters_are_listed_and_answer_in_one_batch(run):
    listed = run.stdout[run.stdout.index("$ bishare inspect library_core/library") :]
    for name in (f"new{i}" for i in range(6)):
        assert listed.count(f"\n{name} ") == 2  # In the list, and among the answers.
    assert "22 adapters, " in listed


def test_what_is_asked_was_not_shown_and_words_are_the_customers_own(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import demo

    for customer in range(100, 106):
        shown = demo.rows_of(customer, 8, seed=0)
        asked = demo.rows_of(customer, 24, seed=1, unlike=shown)
        assert {row.price for row in shown}.isdisjoint(row.price for row in asked)
        for row in (*shown, *asked):
            assert demo.meant(customer, row.price) == row.word.strip()
