"""What somebody may write who does not know the language yet, and what is answered: one file for each.

`UPDATE_GOLDEN=1 pytest tests/plan/test_answers.py` writes the answers of new and changed cases.
"""

import os
from pathlib import Path

import pytest

from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import BishareError, render
from bishare_dsl.language import read
from bishare_dsl.models import preset

CASES = sorted((Path(__file__).parent / "golden" / "answers").glob("*.share"))


def answer(path):
    where = None
    try:
        spec, where = read(path.read_bytes(), path.name)
        problems = make_plan(spec, preset("llama-7b"), where=where).problems
    except BishareError as error:
        problems, where = error.problems, error.where or where
    return "".join(f"{render(problem, where)}\n" for problem in problems)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_answer(path):
    found = answer(path)
    assert found
    golden = path.with_suffix(".txt")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(found, encoding="utf-8", newline="\n")
    assert golden.read_text(encoding="utf-8") == found
