"""PEFT's protocol runs from the base to the result, for its methods and for specs, and files are counted exactly."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from comparison.data import Rows, number, right
from comparison.methods import adapt, experiment, experiments, parameters, peft_file, save, spec_of
from comparison.protocol import Run, Training, batches, labelled, padded

from bishare_dsl import plan_spec
from bishare_dsl.testing.models import tiny_model

FOLDER = Path(__file__).parents[3] / "benchmarks"
LLAMA = "llama-3.2-3b"


class Tokenizer:
    """A token for each letter."""

    eos_token_id, pad_token_id = 0, None

    def __call__(self, text):
        return {"input_ids": [1 + ord(letter) % 60 for letter in text]}

    def batch_decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return ["The answer is: 7"] * len(ids)


ROWS = Rows(
    train=[(f"{n} and {n}?", f" The answer is: {2 * n}") for n in range(12)],
    valid=[("1 and 1?", "#### 2")],
    test=[("3 and 4?", "#### 7"), ("3 and 5?", "#### 8")],
    texts=["some words", "more of them"],
)
SHORT = {
    "max_steps": 4,
    "eval_steps": 2,
    "generation_kwargs": {"max_length": 60, "max_new_tokens": 2},
}
TINY = {
    "lora": {"peft": {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}},
    "ke": {"spec": "bishare_ke", "params": {"size": 16, "r_intra": 2, "r_inter": 2}},
}


@pytest.mark.parametrize("name", TINY)
def test_the_whole_protocol(name):
    model = tiny_model("llama")
    start = {key: value.clone() for key, value in model.state_dict().items()}
    found = Run(name, TINY[name], Training(**SHORT), model, Tokenizer(), ROWS).result()
    assert json.loads(json.dumps(found))["run_info"]["experiment_name"] == name
    assert set(found) == {"run_info", "train_info", "meta_info"}
    first, second, last = found["train_info"]["metrics"]
    assert (first["step"], second["step"]) == (2, 4)
    assert first["valid accuracy"] == 0
    assert last["test accuracy"] == 0.5
    assert last["train samples"] == 16
    assert last["train total tokens"] > 16 * 30
    assert last["forgetting"] != 0
    assert found["train_info"]["file_size"] > 4 * found["train_info"]["num_trainable_params"] > 0
    for key, value in tiny_model("llama").state_dict().items():
        torch.testing.assert_close(start[key], value)


@pytest.mark.parametrize("kind", ["LORA", "MISS", "RANDLORA", "VERA", "LILY"])
def test_the_bytes_of_a_file_that_is_not_written(tmp_path, kind):
    known = next(
        e["peft"] for e in experiments().values() if e.get("peft", {}).get("peft_type") == kind
    )
    config = {"peft": known | {"r": 4, "target_modules": ["q_proj", "v_proj"]}}
    if kind == "LILY":
        config["peft"]["stride_A"] = 1
    model = adapt(config, tiny_model("llama"), seed=0)
    assert peft_file(model) == save(config, model, tmp_path)
    with torch.device("meta"):
        shapes = adapt(config, tiny_model("llama").to("meta"), seed=0)
    assert (peft_file(shapes), parameters(shapes)) == (peft_file(model), parameters(model))


def test_every_spec_is_within_a_budget_of_the_comparison():
    lora, lily = 9_175_040, 9_485_280
    stored = json.loads((FOLDER / "results" / "metamath-columns.json").read_text())["rows"]
    rows = {row["experiment"]: row for row in stored}
    assert list(rows) == list(experiments())
    assert rows["lora/rank32"]["trainable"] == lora
    assert rows["lily/rank140-mlp"]["trainable"] == lily
    for name, known in experiments().items():
        if "spec" in known:
            count = plan_spec(spec_of(known), LLAMA, params=known.get("params", {})).trainable
            assert count == rows[name]["trainable"]
            assert count <= (
                lora / 2 if name.endswith("-half") else lily if "mlp" in name else lora
            )


def test_a_folder_of_the_comparison_is_an_experiment(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3}')
    assert experiment(str(tmp_path)) == {"peft": {"peft_type": "LORA", "r": 3}}
    (tmp_path / "training_params.json").write_text('{"max_steps": 7}')
    assert experiment(str(tmp_path))["train"] == {"max_steps": 7}
    with pytest.raises(
        SystemExit, match="there is no experiment lora/rank33; there are lora/rank32"
    ):
        experiment("lora/rank33")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so 4 = 16. The answer is: 16", 16),
        ("#### 1,200", 1200),
        ("The answer is 5. The answer is: $2.50.\nAnd more", Fraction(5, 2)),
        ("The final answer is: 20/14", Fraction(10, 7)),
        ("The answer is: 50%", 50),
        ("16", None),
        ("The answer is: x", None),
        ("The answer is: 1/0", None),
    ],
)
def test_the_final_number(text, expected):
    assert number(text) == expected


def test_right():
    assert right("The answer is: 7.0", "#### 7")
    assert not right("7", "#### 7")


def test_the_model_learns_to_end_and_no_padding_beyond():
    batch = labelled([[5, 6, 7, 8], [5]], pad=0)
    assert batch["labels"].tolist() == [[5, 6, 7, 8], [5, 0, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert padded([[5], [6, 7]], 0, left=True)["input_ids"].tolist() == [[0, 5], [6, 7]]


def test_batches_are_of_like_lengths_and_begin_again():
    feed = batches([[0] * n for n in range(1, 7)], size=2)
    lengths = [[len(row) for row in next(feed)] for _ in range(4)]
    assert lengths == [[6, 5], [4, 3], [2, 1], [6, 5]]
