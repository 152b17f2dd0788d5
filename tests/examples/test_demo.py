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
demo.MANY_STEPS = 2
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


def test_it_tells_the_time_first_and_says_nothing_else(run):
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("This takes about 2 minutes on two idle cores")
    assert run.stderr == ""


def test_three_ways_have_a_score_and_bytes(run):
    lines = [re.split(r" {2,}", line) for line in run.stdout.splitlines()]
    rows = {line[0]: line for line in lines if len(line) == 4}
    for name in ("bishare_ke_ab", "LoRA r=8"):
        _, numbers, score, size = rows[name]
        assert re.fullmatch(r"\d+ of 24", score)
        assert int(numbers.replace(",", "")) * 4 <= int(size.replace(",", ""))
    # LoRA r=8, and the LoRA of the rank that comes nearest in bytes.
    own = int(rows["bishare_ke_ab"][1].replace(",", ""))
    near = [int(row[1].replace(",", "")) for key, row in rows.items() if key.startswith("LoRA r=")]
    assert len(near) == 2
    assert min(abs(own - count) for count in near) < own / 10


def test_six_adapters_are_listed_and_answer_in_one_batch(run):
    listed = run.stdout[run.stdout.index("$ bishare inspect adapters") :]
    for name in ("plural", "past", "opposite", "capital", "young", "shout"):
        assert listed.count(f"\n{name} ") == 2  # In the list, and among the answers.
    assert "6 adapters, " in listed


def test_words_are_asked_once_and_have_one_answer(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from words import TASKS

    for pairs in TASKS.values():
        assert len({pair.word for pair in pairs}) == len(pairs) >= 20
    assert len(TASKS["plural"]) >= 24 + 32
