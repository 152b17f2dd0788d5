"""Evaluating adapters on a live model gives what lm_eval gives for merged checkpoints."""

import json
import warnings
from contextlib import contextmanager

import pytest
import torch

from bishare_dsl import load_adapter
from bishare_dsl.diagnostics import AdapterError, BishareWarning, ModelError
from bishare_dsl.evaluate import EvaluateError, evaluate
from bishare_dsl.testing.models import tiny_model
from tests.support.tasks import tiny_tasks, write_task

BOTH = "tiny_choose,tiny_write"


def directly(model, tokenizer, tasks, **settings):
    """What lm_eval itself says of a model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    return simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=BOTH.split(","),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        **settings,
    )


def samples_in(folder, task):
    [file] = folder.glob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@contextmanager
def raises(code):
    with pytest.raises((EvaluateError, AdapterError)) as caught:
        yield caught
    assert code in {problem.code for problem in caught.value.problems}


@pytest.mark.parametrize("shots", [None, 2])
def test_figures_are_those_of_the_merged_model(
    checkpoint, adapters, tasks, model, tokenizer, tmp_path, shots
):
    evaluation = evaluate(
        str(checkpoint),
        adapters,
        tasks=BOTH,
        base=True,
        include_path=tasks,
        num_fewshot=shots,
        batch_size=4,
        output_path=tmp_path,
        log_samples=True,
    )
    assert list(evaluation.results) == ["base", "first", "second"]
    chosen = set()
    for label, folder in (("base", None), *((folder.name, folder) for folder in adapters)):
        plain = tiny_model("llama", max_position_embeddings=128)
        if folder is not None:
            plain = load_adapter(folder, plain).bishare.merge_and_unload()
        expected = directly(plain, tokenizer, tasks, num_fewshot=shots)
        [found] = evaluation.results[label]
        assert found["results"] == expected["results"]
        assert found["n-shot"] == expected["n-shot"] == dict.fromkeys(BOTH.split(","), shots or 0)
        for task in BOTH.split(","):
            saved, wanted = samples_in(tmp_path / label, task), expected["samples"][task]
            assert len(saved) == len(wanted) == 24
            for here, there in zip(saved, wanted, strict=True):
                assert here["prompt_hash"] == there["prompt_hash"]
                if task == "tiny_write":
                    assert here["filtered_resps"] == there["filtered_resps"]
                    continue
                likelihoods = [float(answer[0]) for answer in here["filtered_resps"]]
                assert likelihoods == pytest.approx(
                    [a[0] for a in there["filtered_resps"]], rel=1e-4
                )
        [result] = (tmp_path / label).glob("results_*.json")
        kept = json.loads(result.read_text())
        assert kept["results"] == expected["results"]
        assert kept["model_name"] == label
        assert kept["config"]["model_args"]["pretrained"] == str(checkpoint)
        chosen.add(
            json.dumps([sample["acc"] for sample in samples_in(tmp_path / label, "tiny_choose")])
        )
    assert len(chosen) == 3  # The three do differ.


def test_a_live_model_is_given_back_as_it_was(model, tokenizer, adapters, tasks):
    ids = torch.arange(12).view(2, 6)
    model.train()
    with torch.no_grad():
        before = model(ids).logits
    evaluate(model, adapters[0], tasks=["tiny_choose"], tokenizer=tokenizer, include_path=tasks)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)
    assert model.training
    assert not hasattr(model, "bishare")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_adapted_model_is_evaluated_as_it_stands(model, tokenizer, adapters, tasks):
    settings = {"tasks": "tiny_choose", "tokenizer": tokenizer, "include_path": tasks, "base": True}
    stored = evaluate(model, adapters[:1], **settings)
    adapted = load_adapter(adapters[0], model)
    live = evaluate(adapted, **settings)
    assert list(live.results) == ["base", "mixed"]
    assert hasattr(adapted, "bishare")
    for found, wanted in (("base", "base"), ("mixed", "first")):
        assert live.results[found][0]["results"] == stored.results[wanted][0]["results"]
    without = evaluate(adapted, **{**settings, "base": False})
    assert list(without.results) == ["mixed"]


@pytest.fixture
def benchmarks(tmp_path):
    """Tasks with the names of the paper's, over the tiny rows."""
    from bishare_dsl.evaluate.groups import GROUPS

    folder = tiny_tasks(tmp_path / "benchmarks", rows=6)
    choose = {"output_type": "multiple_choice", "doc_to_choice": "words"}
    for number, name in enumerate(GROUPS["commonsense"].tasks):
        write_task(folder, name, **choose, doc_to_text=f"{number} {{{{text}}}}:")
    for name in ("mmlu_a", "mmlu_b", "mmlu_c"):
        write_task(folder, name, **choose, doc_to_text=f"{name[-1]} {{{{text}}}}:")
    mean = [{"metric": "acc", "weight_by_size": True}]
    groups = {
        "mmlu": ["mmlu_stem", "mmlu_other"],
        "mmlu_stem": ["mmlu_a", "mmlu_b"],
        "mmlu_other": ["mmlu_c"],
    }
    for name, inside in groups.items():
        group = {"group": name, "task": inside, "aggregate_metric_list": mean}
        (folder / f"{name}.yaml").write_text(json.dumps(group))
    (folder / "tiny_write.yaml").rename(folder / "gsm8k.yaml")
    text = (folder / "gsm8k.yaml").read_text().replace('"tiny_write"', '"gsm8k"')
    (folder / "gsm8k.yaml").write_text(text)
    return folder


def test_groups_of_the_paper(model, tokenizer, adapters, benchmarks):
    evaluation = evaluate(
        model,
        adapters,
        tasks="commonsense,mmlu,gsm8k",
        tokenizer=tokenizer,
        include_path=benchmarks,
        batch_size=8,
    )
    rows = {(row.task, row.num_fewshot, row.metric): row for row in evaluation.rows}
    eight = [row for row in evaluation.rows if row.depth == 1 and row.metric == "acc"][:8]
    assert [row.task for row in eight] == list(evaluation.results["first"][0]["results"])[:8]
    mean = rows["commonsense", 0, "acc"]
    for label in ("first", "second"):
        scores = [row.scores[label].value for row in eight]
        assert mean.scores[label].value == pytest.approx(sum(scores) / 8)
    for shots in (0, 5):
        assert rows["mmlu", shots, "acc"].depth == 0
        assert rows["mmlu", shots, "acc"].higher_is_better
        assert rows["mmlu_stem", shots, "acc"].depth == 1
        assert rows["mmlu_a", shots, "acc"].depth == 2
    assert rows["gsm8k", 5, "exact_match"].scores["first"].samples == 6
    assert {row.num_fewshot for row in evaluation.rows} == {0, 5}
    shown = str(evaluation)
    assert "| - mmlu_stem" in shown
    assert "mmlu_a" not in shown


def test_shots_that_are_asked_for_win(model, tokenizer, benchmarks):
    asked = {"tasks": "mmlu", "tokenizer": tokenizer, "include_path": benchmarks, "limit": 2}
    evaluation = evaluate(model, num_fewshot=1, **asked)
    assert {row.num_fewshot for row in evaluation.rows} == {1}
    assert "limited to 2 rows of each task" in str(evaluation)


def test_likelihoods_that_are_no_numbers_are_told(model, tokenizer, tasks):
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.warns(BishareWarning, match="BS809.*72 of 72 likelihoods of base"):
        evaluate(model, tasks="tiny_choose", tokenizer=tokenizer, include_path=tasks)


def test_a_setting_that_lm_eval_has_not_is_told_before_the_model_is_loaded(
    checkpoint, tasks, monkeypatch
):
    monkeypatch.setattr("bishare_dsl.evaluate.run.load_base", None)
    with pytest.raises(TypeError, match="limt"):
        evaluate(str(checkpoint), tasks="tiny_choose", include_path=tasks, limt=1)


def test_what_lm_eval_fails_on_is_told(model, tokenizer, adapters, tasks):
    with raises("BS806") as caught:
        evaluate(
            model,
            adapters[0],
            tasks="tiny_write",
            tokenizer=tokenizer,
            include_path=tasks,
            gen_kwargs={"max_gen_toks": 1000},
        )
    assert "evaluating first failed: Invalid configuration" in str(caught.value)
    assert not hasattr(model, "bishare")


@pytest.mark.parametrize(
    ("settings", "code"),
    [({"tokenizer": None}, "BS805"), ({"apply_chat_template": True}, "BS807")],
)
def test_what_prompts_need(model, tokenizer, tasks, settings, code):
    settings = {"tokenizer": tokenizer, **settings}
    with raises(code):
        evaluate(model, tasks="tiny_choose", include_path=tasks, **settings)


def test_adapters_are_checked_before_tasks_and_model(adapters, tasks, tmp_path, monkeypatch):
    tiny_model("llama", num_hidden_layers=3).config.save_pretrained(tmp_path / "other")
    (tmp_path / "nothing").mkdir()
    monkeypatch.setattr("bishare_dsl.evaluate.run.load_tasks", None)
    with raises("BS613") as caught:
        evaluate(str(tmp_path / "other"), [adapters[0], tmp_path / "nothing"], tasks="tiny_choose")
    [other, nothing] = caught.value.problems
    assert other.message.startswith(f"`{adapters[0]}`: the adapter was made for")
    assert nothing.code == "BS602"


def test_tasks_are_loaded_before_the_model(checkpoint, tasks, monkeypatch):
    monkeypatch.setattr("bishare_dsl.evaluate.run.load_base", None)
    with raises("BS802"):
        evaluate(str(checkpoint), tasks="tiny_chose", include_path=tasks)


def test_a_tokenizer_is_looked_for_before_tasks_and_model(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("bishare_dsl.evaluate.run.load_tasks", None)
    with raises("BS807"):
        evaluate(str(checkpoint), tasks="piqa", apply_chat_template=True)
    tiny_model("llama").save_pretrained(tmp_path / "without")
    with raises("BS805"):
        evaluate(str(tmp_path / "without"), tasks="piqa")


def test_an_adapter_of_another_family_is_warned_of(adapters, tasks, tokenizer):
    other = tiny_model("mistral")
    with pytest.warns(BishareWarning, match="BS614"):
        evaluate(other, adapters[0], tasks="tiny_choose", tokenizer=tokenizer, include_path=tasks)


def test_chat_templates_and_system_are_lm_eval_s(model, adapters, tasks, tmp_path):
    from bishare_dsl.testing.tokenizer import tiny_tokenizer

    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    with warnings.catch_warnings():
        warnings.simplefilter("error", BishareWarning)
        evaluate(
            model,
            tasks="tiny_choose",
            tokenizer=tiny_tokenizer(template),
            include_path=tasks,
            num_fewshot=1,
            limit=1,
            apply_chat_template=True,
            system_instruction="be good",
            output_path=tmp_path,
            log_samples=True,
        )
    [sample] = samples_in(tmp_path / "base", "tiny_choose")
    prompt = sample["arguments"]["gen_args_0"]["arg_0"]
    # Each example is a turn of its own.
    assert prompt.startswith("<system>be good\n<user>")
    assert prompt.count("<assistant>") == 2


def test_what_lm_eval_warns_of_is_a_warning(model, tokenizer, tmp_path):
    folder = tiny_tasks(tmp_path / "long", rows=3)
    write_task(
        folder,
        "long",
        output_type="multiple_choice",
        doc_to_choice="words",
        doc_to_text="{{text * 100}}:",
    )
    with pytest.warns(BishareWarning, match="Truncating .* from the left.* more like it"):
        evaluate(model, tasks="long", tokenizer=tokenizer, include_path=folder, random_seed=1)


def test_a_model_without_weights(monkeypatch):
    monkeypatch.setattr("bishare_dsl.evaluate.run.load_tasks", None)
    with pytest.raises(ModelError, match="BS512"):
        evaluate("llama-7b", tasks="piqa")
