"""Batches of encoded examples."""

import torch

from bishare_dsl.train.data.batches import Collator


def test_plain_examples_are_padded_on_the_right():
    examples = [
        {"input_ids": [5, 6, 7, 8, 9, 4], "labels": [-100, 6, 7, 8, 9, 4]},
        {"input_ids": [3, 2, 7], "labels": [-100, -100, 7]},
    ]
    batch = Collator(1)(examples)
    assert batch["input_ids"].tolist() == [
        examples[0]["input_ids"],
        examples[1]["input_ids"] + [1] * 3,
    ]
    assert batch["labels"].tolist() == [examples[0]["labels"], examples[1]["labels"] + [-100] * 3]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    # To predict, no row needs its last token, but for a single one.
    batch = Collator(1).predicting([*examples, {"input_ids": [3], "labels": [-100]}])
    assert batch["attention_mask"].tolist() == [[1] * 5, [1] * 2 + [0] * 3, [1] + [0] * 4]
    assert batch["input_ids"].shape == (3, 5)
    assert batch["labels"].shape == (3, 6)


def test_the_padding_token(tokenizer):
    made = tokenizer()
    assert Collator.of(made) == Collator(made.eos_token_id)
    made.pad_token = "<s>"
    assert Collator.of(made) == Collator(made.bos_token_id)
    assert Collator.of(tokenizer(eos=None)) == Collator(0)
