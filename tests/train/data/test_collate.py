"""Batches, and that packed examples in them know nothing of each other."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import pack_dataset

from bishare_dsl import compile_spec
from bishare_dsl.train.data.batches import Collator, check_packing, dataset_of
from tests.support.families import TINY_FAMILIES, tiny_model

# OPT builds its mask without `position_ids`.
PACKING = sorted(TINY_FAMILIES.keys() - {"opt"})
LENGTHS = [6, 3, 9, 4, 2, 7]


@pytest.fixture
def examples():
    ids = np.random.default_rng(0).integers(3, 64, sum(LENGTHS), dtype=np.int32)
    trained = np.ones(len(ids), dtype=bool)
    trained[np.cumsum([0, *LENGTHS])[:-1]] = False
    return list(dataset_of(ids, np.where(trained, ids, -100), LENGTHS))


def pack(examples):
    return list(pack_dataset(Dataset.from_list(examples), 16))


def attention(family):
    return ["eager"] if family == "gemma2" else ["eager", "sdpa"]


def test_plain_examples_are_padded_on_the_right(examples):
    batch = Collator(1)(examples[:2])
    assert batch["input_ids"].tolist() == [
        examples[0]["input_ids"],
        examples[1]["input_ids"] + [1] * 3,
    ]
    assert batch["labels"].tolist() == [examples[0]["labels"], examples[1]["labels"] + [-100] * 3]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    # `flatten` is for packed examples.
    assert Collator(1, flatten=True)(examples[:2])["input_ids"].shape == (2, 6)


def test_packed_examples_have_positions_and_no_mask(examples):
    packed = pack(examples)
    assert [len(sequence["input_ids"]) for sequence in packed] == [16, 15]
    assert sorted(i for p in packed for i in p["input_ids"]) == sorted(
        i for e in examples for i in e["input_ids"]
    )
    batch = Collator(1)(packed)
    assert batch.keys() == {"input_ids", "labels", "position_ids", "use_cache"}
    assert batch["use_cache"] is False
    positions = [[p for n in packed[i]["seq_lengths"] for p in range(n)] for i in range(2)]
    assert batch["position_ids"].tolist() == [positions[0], [*positions[1], 0]]
    assert batch["labels"][1, -1] == -100
    flat = Collator(1, flatten=True)(packed)
    assert flat["input_ids"].shape == (1, 31)
    assert flat["position_ids"][0].tolist() == positions[0] + positions[1]
    for name in ("input_ids", "labels"):
        assert flat[name][0].tolist() == packed[0][name] + packed[1][name]


@pytest.mark.each_once
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize(
    ("family", "implementation"), [(f, a) for f in PACKING for a in attention(f)]
)
def test_an_example_means_the_same_packed_and_alone(family, implementation, flatten, examples):
    model = tiny_model(family, attn_implementation=implementation)
    collator = Collator(1, flatten)
    batch = collator(pack(examples))
    # As in training, where models are told nothing of a cache and have one by default.
    model.config.use_cache = True
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch).logits
        loss = model(**batch, labels=labels).loss
        total, count = 0.0, 0
        for example in examples:
            alone = model(torch.tensor([example["input_ids"]])).logits[0]
            wanted = torch.tensor(example["input_ids"])
            # Where it is in the batch.
            rows = batch["input_ids"].unfold(1, len(wanted), 1)
            [[row, start]] = (rows == wanted).all(-1).nonzero().tolist()
            torch.testing.assert_close(logits[row, start : start + len(wanted)], alone)
            total += torch.nn.functional.cross_entropy(
                alone[:-1], wanted[1:], reduction="sum"
            ).item()
            count += len(wanted) - 1
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    check_packing(model, collator)


class WithMask(Collator):
    """As a mask that says nothing of examples."""

    def __call__(self, examples):
        batch = super().__call__(examples)
        return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


class WithCache(Collator):
    def __call__(self, examples):
        return {**super().__call__(examples), "use_cache": True}


class WithoutPositions(Collator):
    def __call__(self, examples):
        return {k: v for k, v in super().__call__(examples).items() if k != "position_ids"}


@pytest.mark.parametrize("leaky", [WithMask, WithCache, WithoutPositions])
def test_a_leak_is_seen(leaky, problems):
    model = tiny_model("llama")
    [problem] = problems(check_packing, model, leaky(0))
    assert problem.code == "BS725"
    assert "packed for llama" in problem.message


def test_a_model_that_does_not_keep_examples_apart(problems):
    [problem] = problems(check_packing, tiny_model("opt"), Collator(0))
    assert problem.code == "BS725"
    assert "packed for opt: what it says" in problem.message


def test_a_model_without_positions(problems, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(model, "forward", lambda input_ids, use_cache=False: None)
    [problem] = problems(check_packing, model, Collator(0))
    assert problem.code == "BS725"
    assert "takes no `position_ids`" in problem.message


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_no_trace(training):
    model = tiny_model("llama", attention_dropout=0.5)
    model.train(training)
    before = torch.get_rng_state()
    check_packing(model, Collator(0))
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), before)


def test_an_adapted_model_keeps_them_apart():
    model = tiny_model("llama")
    compile_spec("lora", model)
    check_packing(model.to(torch.bfloat16), Collator(0))


def test_the_padding_token(tokenizer):
    made = tokenizer()
    assert Collator.of(made) == Collator(made.eos_token_id)
    made.pad_token = "<s>"
    assert Collator.of(made, flatten=True) == Collator(made.bos_token_id, flatten=True)
    assert Collator.of(tokenizer(eos=None)) == Collator(0)
