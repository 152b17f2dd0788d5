import pytest
from transformers import set_seed

from bishare_dsl import load_adapter
from bishare_dsl.evaluate import EvaluateError, complete
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_it_is_the_model_s_own_generate(model, adapters, tokenizer):
    load_adapter(adapters[0], model)
    inputs = tokenizer("ab", return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, 2:]
    found = complete(model, tokenizer, "ab", max_new_tokens=12, do_sample=False)
    assert found.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert (found.tokens, found.finish) == (12, "length")
    set_seed(3)
    drawn = model.generate(**inputs, max_new_tokens=12, do_sample=True)[0, 2:]
    again = [
        complete(model, tokenizer, "ab", max_new_tokens=12, do_sample=True, seed=3)
        for _ in range(2)
    ]
    assert again[0] == again[1]
    assert again[0].text == tokenizer.decode(drawn, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("settings", "prompt"),
    [
        ({}, "<user>hi\n<assistant>"),
        ({"system": "be good"}, "<system>be good\n<user>hi\n<assistant>"),
        ({"chat": False}, "hi"),
    ],
)
def test_the_chat_template_is_used_where_there_is_one(model, settings, prompt):
    tokenizer = tiny_tokenizer(TEMPLATE)
    plain = complete(model, tiny_tokenizer(), prompt, max_new_tokens=5, do_sample=False)
    found = complete(model, tokenizer, "hi", max_new_tokens=5, do_sample=False, **settings)
    assert found == plain


def test_it_ends_where_it_is_told_to(model, tokenizer):
    whole = complete(model, tokenizer, "ab", max_new_tokens=12, do_sample=False).text
    stop = whole[4:6]
    found = complete(model, tokenizer, "ab", max_new_tokens=12, do_sample=False, stop=[stop])
    assert found.text == whole[: whole.index(stop) + 2]
    assert found.finish == "stop"
    cut = complete(
        model, tokenizer, "ab", max_new_tokens=found.tokens, do_sample=False, stop=[stop]
    )
    assert cut == found
    first = model.generate(**tokenizer("ab", return_tensors="pt"), max_new_tokens=1)[0, 2]
    model.generation_config.eos_token_id = [1, int(first)]
    found = complete(model, tokenizer, "ab", max_new_tokens=1, do_sample=False)
    assert (found.tokens, found.finish) == (1, "stop")


@pytest.mark.parametrize(
    ("prompt", "settings", "code", "help"),
    [
        ("hi", {"chat": True}, "BS807", "leave out `--apply_chat_template`"),
        ("hi", {"system": "be good"}, "BS807", "leave out `--apply_chat_template`"),
        ("hi", {"max_new_tokens": 127}, "BS810", "`--max_new_tokens 126` fits"),
        ("hi" * 64, {"max_new_tokens": 1}, "BS810", "shorten the prompt"),
    ],
)
def test_what_cannot_be(model, tokenizer, prompt, settings, code, help):
    with pytest.raises(EvaluateError) as caught:
        complete(model, tokenizer, prompt, **settings)
    [problem] = caught.value.problems
    assert problem.code == code
    assert help in problem.help


def test_it_needs_a_tokenizer(model):
    with pytest.raises(EvaluateError, match="BS805"):
        complete(model, None, "hi")


def test_learned_positions_end(tokenizer):
    model = tiny_model("gpt2")
    assert complete(model, tokenizer, "a", max_new_tokens=63, do_sample=False).tokens == 63
    with pytest.raises(EvaluateError, match="64 positions"):
        complete(model, tokenizer, "a", max_new_tokens=64)
