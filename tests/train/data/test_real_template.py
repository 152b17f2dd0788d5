"""On the tokenizer and the chat template of the real model."""

import pytest

from bishare_dsl.train.data.encoding import encode

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def smollm2():
    from transformers import AutoTokenizer

    from examples.smollm2 import smollm2_folder

    return AutoTokenizer.from_pretrained(smollm2_folder(progress=False))


def test_alpaca_is_a_chat(smollm2, rows, trained):
    row = {"instruction": "Name a fox.", "input": "", "output": "Reynard"}
    [example] = encode(rows(row), smollm2, max_length=100).examples
    assert smollm2.decode(example["input_ids"]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nName a fox.<|im_end|>\n<|im_start|>assistant\nReynard<|im_end|>\n"
    )
    assert trained(example, smollm2) == ["Reynard<|im_end|>"]
    prompt = smollm2.apply_chat_template(
        [{"role": "user", "content": row["instruction"]}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert example["input_ids"][: len(prompt)] == prompt
    assert example["labels"][: len(prompt)] == [-100] * len(prompt)
