"""Batches of encoded examples."""

import numpy as np
import pytest
import torch

from bishare_dsl.train.data.batches import Collator, dataset_of

LENGTHS = [6, 3, 9, 4, 2, 7]


@pytest.fixture
def examples():
    ids = np.random.default_rng(0).integers(3, 64, sum(LENGTHS), dtype=np.int32)
    trained = np.ones(len(ids), dtype=bool)
    trained[np.cumsum([0, *LENGTHS])[:-1]] = False
    return list(dataset_of(ids, np.where(trained, ids, -100), LENGTHS))


def test_plain_examples_are_padded_on_the_right(examples):
    batch = Collator(1)(examples[:2])
    assert batch["input_ids"].tolist() == [
        examples[0]["input_ids"],
        examples[1]["input_ids"] + [1] * 3,
    ]
    assert batch["labels"].tolist() == [examples[0]["labels"], examples[1]["labels"] + [-100] * 3]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_the_padding_token(tokenizer):
    made = tokenizer()
    assert Collator.of(made) == Collator(made.eos_token_id)
    made.pad_token = "<s>"
    assert Collator.of(made) == Collator(made.bos_token_id)
    assert Collator.of(tokenizer(eos=None)) == Collator(0)
