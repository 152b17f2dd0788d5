import pytest
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from bishare_dsl.train import TrainError, arguments
from bishare_dsl.train.arguments import convert, training_arguments
from bishare_dsl.train.record import effective_batch


def args(tmp_path, evaluates=False, **given):
    given = {name: convert(name, value) for name, value in given.items()}
    return training_arguments(given, str(tmp_path), evaluates=evaluates)


def test_the_papers_recipe(tmp_path):
    found = args(tmp_path)
    assert found.optim.startswith("adamw")
    assert (found.learning_rate, found.get_warmup_steps(1000)) == (1e-4, 100)
    assert (found.num_train_epochs, found.weight_decay, found.seed) == (1, 0, 0)
    assert effective_batch(found) == 64
    assert found.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert not found.logging_nan_inf_filter
    assert not found.bf16
    assert not found.gradient_checkpointing


def test_a_run_warms_up_as_the_paper_does_but_never_over_more_than_a_tenth():
    assert [arguments.warm_up_steps(n, "default") for n in (1, 2, 9, 10, 250, 1000, 9999)] == [
        0, 0, 0, 1, 25, 100, 100
    ]  # fmt: skip
    assert arguments.warm_up_steps(2, "paper") == 100


@pytest.mark.parametrize(
    ("examples", "more", "steps"),
    [(64, {}, 1), (65, {}, 2), (128, {"num_train_epochs": 1.5}, 3), (1, {"max_steps": 7}, 7)],
)
def test_the_steps_of_a_run(tmp_path, examples, more, steps):
    assert arguments.count_steps(args(tmp_path, **more), examples) == steps


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
        ("eval_strategy", IntervalStrategy.STEPS, "steps"),
        ("report_to", ["tensorboard"], ["tensorboard"]),
        ("lr_scheduler_kwargs", '{"num_cycles": 2}', {"num_cycles": 2}),
        ("lr_scheduler_kwargs", {"num_cycles": 2}, {"num_cycles": 2}),
        ("label_names", "labels", ["labels"]),
    ],
)
def test_values_may_be_text(name, value, expected):
    assert convert(name, value) == expected
    assert type(convert(name, value)) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("learning_rate", "fast", "it is a number"),
        ("learning_rate", True, "it is a number"),
        ("learning_rate", -1, "it must be at least 0"),
        ("learning_rate", "nan", "it must be at least 0"),
        ("max_steps", "1.5", "it is a whole number"),
        ("per_device_train_batch_size", 0, "it must be at least 1"),
        ("num_train_epochs", 0, "it must be above 0"),
        ("adam_beta1", 2, "it must be from 0 to 1"),
        ("seed", 2**32, "it must be from 0 to"),
        ("bf16", "maybe", "it is true or false"),
        ("eval_strategy", "sometimes", "valid here: `epoch`, `no`, `steps`"),
        ("fsdp_config", '{"version" 2}', "delimiter"),
    ],
)
def test_wrong_values(name, value, reason):
    with pytest.raises(TrainError, match="BS731") as caught:
        convert(name, value)
    assert reason in str(caught.value)
    assert f"`{name}`" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ({"bf16": True, "fp16": True}, "BS732", "fp16 and bf16"),
        ({"load_best_model_at_end": True}, "BS732", "eval_split"),
        ({"eval_strategy": "epoch"}, "BS732", "eval_split"),
        ({"dataloader_prefetch_factor": 2}, "BS732", "dataloader_num_workers"),
        ({"report_to": "tensorbord"}, "BS731", "did you mean `tensorboard`"),
        ({"report_to": "wandb"}, "BS735", "pip install wandb"),
        *(
            ({name: "1"}, "BS733", name)
            for name in ("push_to_hub", "auto_find_batch_size", "logging_nan_inf_filter")
        ),
        ({"deepspeed": "zero.json"}, "BS733", "deepspeed"),
        ({"remove_unused_columns": True}, "BS733", "remove_unused_columns"),
        ({"disable_tqdm": False}, "BS733", "--quiet"),
    ],
)
def test_what_does_not_go(tmp_path, given, code, said):
    with pytest.raises(TrainError, match=code) as caught:
        args(tmp_path, **given)
    assert said in str(caught.value)


def test_strategies_that_do_not_match(tmp_path):
    with pytest.raises(TrainError, match=r"BS732.*round multiple"):
        args(tmp_path, evaluates=True, load_best_model_at_end=True, eval_steps=30)


def test_held_out_data_is_evaluated_on_when_checkpoints_are_saved(tmp_path):
    found = args(tmp_path, evaluates=True, save_steps=7)
    assert (found.eval_strategy, found.eval_steps) == ("steps", 7)
    assert args(tmp_path, evaluates=True, eval_strategy="epoch").eval_strategy == "epoch"
    assert args(tmp_path, evaluates=True, eval_strategy=False).eval_strategy == "no"


def test_either_name_of_gradient_checkpointing(tmp_path, recwarn):
    names = {"gradient_checkpointing", "activation_checkpointing"}
    for name in names.intersection(arguments.argument_names()):
        found = args(tmp_path, **{name: True, f"{name}_kwargs": {"preserve_rng_state": True}})
        assert found.gradient_checkpointing
        assert found.gradient_checkpointing_kwargs == {
            "use_reentrant": False,
            "preserve_rng_state": True,
        }
    assert not [w for w in recwarn if issubclass(w.category, FutureWarning)]


def test_all_that_may_be_given_is_described():
    rows = {name: (default, said) for name, default, said in arguments.describe_arguments()}
    assert rows["learning_rate"][0] == "0.0001"
    assert rows["per_device_train_batch_size"][0] == "4"
    names = {"bf16", "gradient_checkpointing", "activation_checkpointing"} & rows.keys()
    assert {rows[name][0] for name in names} == {"False"}
    assert "at most 100" in rows["warmup_steps"][0]
    assert {"loss_type", "router_aux_loss_coef"} <= rows.keys()
    assert "learning rate" in rows["learning_rate"][1]
    assert not rows.keys() & {"push_to_hub", "disable_tqdm", "output_dir"}
