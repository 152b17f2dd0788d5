"""Each way to give a new task an adapter has a score of each task that was left out."""

import importlib.util

import pytest

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from tests.examples.conftest import EXAMPLES
from tests.examples.test_customers import examples

SPEC = """spec small
target q_proj
share core  A per module  B per adapter, module  rank 2
"""


@pytest.mark.long
def test_all_ways_are_compared(tmp_path):
    place = importlib.util.spec_from_file_location("compare", EXAMPLES / "compare.py")
    compare = importlib.util.module_from_spec(place)
    place.loader.exec_module(compare)
    tiny_model("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "small.share").write_text(SPEC)
    files = {f"m{i}": examples(tmp_path / f"m{i}.jsonl", 30 * i + 10, 8, i) for i in range(4)}
    how = {"spec": str(tmp_path / "small.share"), "model": str(tmp_path / "base"), "files": files}
    scores, sizes = compare.compare(**how, max_steps=2, learning_rate=1e-2)
    assert len(scores) == 9
    assert {len(found) for found in scores.values()} == {2}
    assert all(0 <= score <= 100 for found in scores.values() for score in found)
    assert sizes["no adapter"] == sizes["one LoRA for all, as it is"] == 0
    assert sizes["the library, auto"] < sizes["a fresh LoRA, r=8"]
    said = compare.table(scores, sizes)
    assert "correct, %" in said
    assert "over 2 tasks that were left out, no way is measurably better." in said
