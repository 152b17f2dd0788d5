"""What a stranger's card and config may hold: nothing of it stops a conversion."""

import json
from types import SimpleNamespace

import pytest

from bishare_dsl.convert.origin import CARD, read_origin

PLAN = SimpleNamespace(base=SimpleNamespace(name="llama", model_id=None))
TEXT = ("the text of its card",)
CARDS = {
    "a tag that is no list": ("tags: poems", {"tags": ["poems"]}, ()),
    "fields of other kinds": (
        "license: {a: b}\ntags: [1, 2]\nlanguage: en",
        {"language": "en"},
        ("`license` of its card", "`tags` of its card"),
    ),
    "keys of other kinds": ("1: x\nlicense: mit", {}, TEXT),
    "no YAML": ("license: [", {}, TEXT),
    "code": ("license: !!python/object/apply:os.system [false]", {}, TEXT),
    "a list": ("- a", {}, TEXT),
}


@pytest.mark.parametrize("card", CARDS)
def test_a_card_of_a_stranger(card, tmp_path):
    text, kept, left = CARDS[card]
    (tmp_path / CARD).write_text(f"---\n{text}\n---\n")
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "llama", "revision": 3, "task_type": "CAUSAL_LM"})
    )
    origin = read_origin(tmp_path, PLAN)
    assert origin.config == {"task_type": "CAUSAL_LM"}  # `llama` is the name of the family.
    assert origin.card == kept
    assert origin.left == left
    origin.write(tmp_path, "title")
    assert read_origin(tmp_path, PLAN).card == kept
