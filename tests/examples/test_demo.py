"""The demo on a tiny model: it rejects, mends, trains, merges, compares and verifies, and nobody else speaks."""

import re
import subprocess
import sys

import pytest

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from tests.examples.conftest import EXAMPLES

START = """
import sys
sys.path.insert(0, {examples!r})
import smollm2
smollm2.smollm2_folder = lambda cache=None: {model!r}
import demo
sys.argv = ["demo.py", "--steps", "2"]
demo.main()
"""


@pytest.mark.long
def test_it_rejects_mends_trains_merges_compares_and_verifies(tmp_path):
    tiny_model("llama", hidden_size=64, max_position_embeddings=256).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    code = START.format(examples=str(EXAMPLES), model=str(tmp_path / "m"))
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    assert re.match(r"This takes about \d+ seconds on two idle cores", run.stdout)
    spoken = r"(warning\[BS351\].*| .*|\d+ \|.*|(loading|evaluating|merging|saving|saved|converting|not carried).*)\n"
    verify = r"error\[BS870\].* 'new1' .*\n  = help: .*\n"
    assert re.fullmatch(f"({spoken})*{verify}", run.stderr), run.stderr
    order = (
        "$ bishare check mistake.share",
        "error[BS305]: share `block` cannot have one A",
        "$ bishare check tiers.share",
        "$ bishare plan tiers.share lora",
        "train tiers.share",
        "$ bishare eval tiers",
        "$ bishare merge tiers",
        "$ bishare convert tiers",
        "the updates of all modules are equal",
        "2. Many related tasks on one base",
        "3. Is my adapter applied?",
    )
    places = [run.stdout.find(part) for part in order]
    assert -1 not in places, dict(zip(order, places, strict=True))
    assert places == sorted(places)
    lines = [re.split(r" {2,}", line) for line in run.stdout.splitlines()]
    rows = {line[0]: line for line in lines if len(line) == 4 and "of 96" in line[3]}
    own = {}
    for name in ("a fresh LoRA r=8, trained", "a sum of the library's adapters"):
        _, numbers, size, score = rows[name]
        assert re.fullmatch(r"\d+ of 96", score)
        own[name] = int(numbers.replace(",", ""))
        assert own[name] * 4 <= int(size.replace(",", ""))
    assert own["a sum of the library's adapters"] < own["a fresh LoRA r=8, trained"] / 10
    table = run.stdout[run.stdout.index("$ bishare verify") :]
    verdicts = [line for line in table.splitlines() if re.match(r"new\d ", line)]
    assert len(verdicts) == 4
    assert [line for line in verdicts if "NOT APPLIED" in line] == verdicts[3:4]


def test_what_is_asked_was_not_shown_and_words_are_the_customers_own():
    import demo

    for customer in range(100, 106):
        shown = demo.rows_of(customer, 8, seed=0)
        asked = demo.rows_of(customer, 24, seed=1, unlike=shown)
        assert {row.price for row in shown}.isdisjoint(row.price for row in asked)
        for row in (*shown, *asked):
            assert demo.meant(customer, row.price) == row.word.strip()
