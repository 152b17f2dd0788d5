"""On the tokenizer and the chat template of the real model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bishare_dsl.train.data.encoding import encode

pytestmark = pytest.mark.e2e

# The tokenizer has no tokens for some control characters.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn", "Cc"], include_characters="\n\t")
SAID = st.text(CHARACTERS, min_size=1).filter(str.strip)


@pytest.fixture(scope="module")
def smollm2():
    from transformers import AutoTokenizer

    from examples.smollm2 import smollm2_folder

    return AutoTokenizer.from_pretrained(smollm2_folder(progress=False))


@given(said=st.lists(SAID, min_size=1, max_size=3), asked=SAID)
@settings(max_examples=2 * settings().max_examples)
def test_trained_is_what_the_assistant_says_and_its_end(said, asked, smollm2, rows, trained):
    messages = [
        {"role": role, "content": content}
        for text in said
        for role, content in (("user", asked), ("assistant", text))
    ]
    [example] = encode(rows({"messages": messages}), smollm2, max_length=10_000).examples
    assert trained(example, smollm2) == [f"{text}<|im_end|>" for text in said]
    text = smollm2.apply_chat_template(messages, tokenize=False)
    assert smollm2.decode(example["input_ids"]) == text
    # The first answer is predicted from what the model is prompted with.
    prompt = smollm2.apply_chat_template(
        messages[:1], add_generation_prompt=True, return_dict=False
    )
    assert example["input_ids"][: len(prompt)] == prompt
    assert example["labels"][: len(prompt) + 1] == [-100] * len(prompt) + [
        example["input_ids"][len(prompt)]
    ]


def test_alpaca_is_a_chat(smollm2, rows, trained):
    row = {"instruction": "Name a fox.", "input": "", "output": "Reynard"}
    [example] = encode(rows(row), smollm2, max_length=100).examples
    assert smollm2.decode(example["input_ids"]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nName a fox.<|im_end|>\n<|im_start|>assistant\nReynard<|im_end|>\n"
    )
    assert trained(example, smollm2) == ["Reynard<|im_end|>"]
