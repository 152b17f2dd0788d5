import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from bishare_dsl import compile_spec, parse_spec, plan_spec
from bishare_dsl.convert.origin import training_in, with_training
from bishare_dsl.folder.card import model_card
from bishare_dsl.folder.config import AdapterConfig
from bishare_dsl.folder.files import save_library
from bishare_dsl.models import preset
from bishare_dsl.testing.models import tiny_model

TEXT = "spec my_spec target q_proj share x per layer rank 2"


def front_matter(card):
    first, matter, _ = card.split("---\n", 2)
    assert first == ""
    return matter.splitlines()


def card_of(text, model):
    plan = plan_spec(parse_spec(text), model)
    fields = {"versions": {}, "spec": text, "seed": 0, "base": plan.base, "plan": plan.digest}
    return plan, model_card(plan, AdapterConfig(**fields))


def test_the_card_of_an_adapter_for_a_model_on_the_hub():
    plan, card = card_of(TEXT, preset("smollm2-135m"))
    matter = front_matter(card)
    assert "library_name: peft" in matter
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in matter
    assert "- bishare" in matter
    assert "\n# my_spec\n" in card
    assert plan.parameters_line in card
    assert TEXT in card
    assert 'from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")' in card


def test_a_spec_with_braces_is_only_text():
    text = "spec s target q_proj share x per module rank match kind { q_proj: 1 }"
    assert text in card_of(text, preset("smollm2-135m"))[1]


def test_a_card_says_in_words_what_the_adapter_is_and_leaves_the_rest_to_fill_in():
    _, card = card_of(TEXT, tiny_model("llama"))
    assert "- `x`: `Identity` of rank 2 at 2 modules, with 4 tensors, 0 of them used" in card
    assert any(line.startswith("# license: FILL IN") for line in front_matter(card))
    assert yaml.safe_load("\n".join(front_matter(card)))["tags"]
    # A base that is not on the Hub is not named as if it were.
    assert not any(line.startswith("base_model") for line in front_matter(card))
    for heading in ("## Training", "## Licence"):
        assert card.split(heading)[1].strip().startswith("Fill in")


@pytest.mark.parametrize("library", [False, True])
def test_the_first_code_of_a_card_runs(library, tmp_path):
    base, place = tiny_model("llama"), tmp_path / "adapter"
    base.save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model = compile_spec(parse_spec(TEXT), base)
    if library:
        values = {name: model.bishare.tensors() for name in ("law", "code")}
        save_library(place, model.bishare.plan, values, TEXT, seed=0, origin=model.bishare.origin())
    else:
        model.save_pretrained(place)
    card = (place / "README.md").read_text()
    assert ("A library of 2 adapters for" in card) == library
    code = card.split("```python\n")[1].split("```")[0]
    code = code.replace("path/to/this/folder", str(place))
    found = {}
    exec(code, found)  # As a reader copies it.
    ids = torch.arange(8).view(1, 8)
    assert torch.equal(found["model"].eval()(ids).logits, model.eval()(ids).logits)


def test_the_card_of_a_folder_without_training_says_so(bishare, here):
    tiny_model("llama").save_pretrained("base")
    (here / "mine.share").write_text(TEXT)
    assert bishare("compile", "mine.share", "--model", "base", "--out", "fresh").code == 0
    assert "## Training\n\nNot trained: its tensors" in (here / "fresh/README.md").read_text()


def test_the_section_on_training_is_filled_and_found_in_any_card():
    card = card_of(TEXT, tiny_model("llama"))[1]
    assert training_in(card) is None
    filled = with_training(card, "- steps: 3 {not} \\1")
    assert training_in(filled) == "- steps: 3 {not} \\1"
    assert filled.split("## Licence")[1] == card.split("## Licence")[1]
    assert training_in(with_training("# mine\n", "by hand")) == "by hand"
