import pytest
from transformers import TrainingArguments

from bishare_dsl.train import TrainError
from bishare_dsl.train.prepare import effective_batch, training_arguments
from bishare_dsl.train.request import make_request


def convert(name, value):
    needed = {"spec": "lora", "model": "m", "data": "d.jsonl", "output_dir": "out"}
    return make_request({**needed, name: value}, None).arguments[name]


def args(tmp_path, evaluates=False, **given):
    given = {name: convert(name, value) for name, value in given.items()}
    return training_arguments(given, str(tmp_path), evaluates=evaluates)


def test_the_papers_recipe(tmp_path):
    found = args(tmp_path)
    assert found.optim.startswith("adamw")
    assert found.learning_rate == 1e-4
    assert (found.num_train_epochs, found.weight_decay, found.seed) == (1, 0, 0)
    assert effective_batch(found) == 64
    assert not found.logging_nan_inf_filter
    assert not found.bf16
    assert not found.gradient_checkpointing


@pytest.mark.parametrize(
    ("given", "size", "steps", "world"),
    [
        ({}, 4, 16, 1),
        ({}, 4, 2, 8),
        ({}, 1, 1, 64),
        ({"per_device_train_batch_size": 16}, 16, 4, 1),
        ({"per_device_train_batch_size": 16}, 16, 1, 8),
        ({"per_device_train_batch_size": 3}, 3, 21, 1),
        ({"gradient_accumulation_steps": 32}, 2, 32, 1),
        ({"gradient_accumulation_steps": 4}, 2, 4, 8),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}, 2, 3, 8),
    ],
)
def test_the_effective_batch_is_64_if_nobody_says_otherwise(
    tmp_path, monkeypatch, given, size, steps, world
):
    monkeypatch.setattr(TrainingArguments, "world_size", world)
    found = args(tmp_path, **given)
    assert found.per_device_train_batch_size == size
    assert found.gradient_accumulation_steps == steps


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", "2e-4", 2e-4),
        ("learning_rate", 1, 1.0),
        ("max_steps", "-1", -1),
        ("bf16", "true", True),
        ("bf16", False, False),
        ("gradient_checkpointing", "yes", True),
        ("eval_strategy", False, "no"),  # as YAML reads `no`
        ("report_to", ["tensorboard"], ["tensorboard"]),
        ("lr_scheduler_kwargs", {"num_cycles": 2}, {"num_cycles": 2}),
    ],
)
def test_values_may_be_text(name, value, expected):
    assert convert(name, value) == expected
    assert type(convert(name, value)) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("learning_rate", "fast", "a valid number"),
        ("max_steps", "1.5", "a valid integer"),
        ("bf16", "maybe", "a valid boolean"),
    ],
)
def test_wrong_values(name, value, reason):
    with pytest.raises(TrainError, match="BS731") as caught:
        convert(name, value)
    assert reason in str(caught.value)
    assert f"`{name}`" in str(caught.value)
