from bishare_dsl import parse_spec, plan_spec
from bishare_dsl.adapter.card import model_card
from bishare_dsl.models import preset
from bishare_dsl.testing.models import tiny_model

TEXT = "spec my_spec target q_proj share x per layer rank 2"


def front_matter(card: str) -> list[str]:
    first, matter, _ = card.split("---\n", 2)
    assert first == ""
    return matter.splitlines()


def test_the_card_of_an_adapter_for_a_model_on_the_hub() -> None:
    plan = plan_spec(parse_spec(TEXT), preset("smollm2-135m"))
    card = model_card(plan, TEXT)
    matter = front_matter(card)
    assert "library_name: peft" in matter
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in matter
    assert "- bishare" in matter
    assert "\n# my_spec\n" in card
    assert plan.parameters_line in card
    assert TEXT in card
    assert 'from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")' in card


def test_a_base_that_is_not_on_the_hub_is_not_named_as_if_it_were() -> None:
    card = model_card(plan_spec(parse_spec(TEXT), tiny_model("llama")), TEXT)
    assert not any(line.startswith("base_model") for line in front_matter(card))


def test_a_spec_with_braces_is_only_text() -> None:
    text = "spec s target q_proj share x per module rank match kind { q_proj: 1 }"
    assert text in model_card(plan_spec(parse_spec(text), preset("smollm2-135m")), text)


def test_a_card_says_how_the_adapter_is_loaded() -> None:
    plan = plan_spec(parse_spec(TEXT), tiny_model("llama"))
    assert "import bishare_dsl.peft" in model_card(plan, TEXT)
    library = model_card(plan, TEXT, ("law", "code"))
    assert "A library of 2 adapters for" in library
    assert 'load_adapter("path/to/this/folder#law", model)' in library
