"""Rows with `options`: the loss among them, and the accuracy."""

import json
import math

import pytest
import torch

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import train
from bishare_dsl.train.data.batches import ALLOWED, IGNORED, Collator
from bishare_dsl.train.data.encoding import encode
from bishare_dsl.train.data.load import load_rows
from bishare_dsl.train.loss import are_likeliest, learned_logits, loss_of
from tests.train.conftest import SMALL

SPEC = "spec s\ntarget q_proj, v_proj\nshare x per module rank 4\n"
LIBRARY = "spec s\ntarget q_proj, v_proj\nshare x  A per module  B per adapter, module  rank 4\n"
OPTIONS = ["cab", "cabin", "cow", "dog"]


def write(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def rows_of(*completions):
    return [
        {"prompt": f"{i} is a ", "completion": text, "options": OPTIONS}
        for i, text in enumerate(completions)
    ]


def batch_of(path, *rows):
    examples = encode(load_rows(write(path, *rows)), tiny_tokenizer(), max_length=64).examples
    return examples, Collator.of(tiny_tokenizer())([*examples])


def test_probabilities_of_the_options_add_up_to_one(tmp_path):
    """Also where an option begins as another, or with all of it."""
    same = [{"prompt": "a ", "completion": text, "options": OPTIONS} for text in OPTIONS]
    examples, batch = batch_of(tmp_path / "r.jsonl", *same)
    model = tiny_model("llama").eval()
    logits, learned = learned_logits(model, model.forward, batch)
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), learned.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(learned.shape)
    torch.testing.assert_close((-losses.sum(1)).exp().sum(), torch.tensor(1.0))
    # c or d; ca or co; after "cab" its end or "i". What must follow is not learned.
    assert [len(example[ALLOWED]) for example in examples] == [3, 3, 2, 1]
    assert are_likeliest(logits, learned).sum() == 1
    assert loss_of(logits, learned, None).isfinite()


@pytest.mark.parametrize("several", [False, True])
def test_a_run_learns_the_options_and_tells_how_many_are_right(tmp_path, several):
    rows = [
        {
            "prompt": f"{word} ",
            "completion": "yes" if word < "n" else "no",
            "options": ["no", "yes"],
        }
        for word in "abcdefnopqrs"
    ]
    file = write(tmp_path / "rows.jsonl", *rows)
    how = SMALL | {"max_steps": 30, "eval_split": 4, "learning_rate": 3e-2, "quiet": True}
    data, spec = ({"one": file, "two": file}, LIBRARY) if several else (file, SPEC)
    model = tiny_model("llama")
    made = train(spec, model, data, tmp_path / "out", tokenizer=tiny_tokenizer(), **how)
    assert made.loss_last < made.loss_first < 1.1 * math.log(2)
    for task in made.tasks:
        assert task.data["train"].trained_tokens == 8
        assert task.accuracy in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert "among the options" in str(made)
    assert "bishare eval" in str(made)
    assert "--data ..." in str(made)
    assert ("correct" in str(made)) is several
    assert json.loads(json.dumps(made.as_dict(), default=str))["accuracy"] == made.accuracy


def test_tasks_with_and_without_options_train_in_one_run_as_they_do_alone(tmp_path):
    """Whichever comes first: a batch of both would have one loss."""
    with_options = rows_of(*OPTIONS, *OPTIONS)
    files = {
        "chosen": write(tmp_path / "chosen.jsonl", *with_options),
        "free": write(
            tmp_path / "free.jsonl",
            *({name: row[name] for name in ("prompt", "completion")} for row in with_options),
        ),
    }
    how = SMALL | {"max_steps": 4, "eval_split": 2, "quiet": True, "tokenizer": tiny_tokenizer()}
    both = train(SPEC, tiny_model("llama"), files, tmp_path / "both", **how)
    turned = dict(reversed(files.items()))
    again = train(SPEC, tiny_model("llama"), turned, tmp_path / "turned", **how)
    for task, other in zip(both.tasks, again.tasks[::-1], strict=True):
        alone = train(SPEC, tiny_model("llama"), files[task.name], tmp_path / task.name, **how)
        for name in ("loss_first", "loss_last", "eval_loss"):
            found = [getattr(result, name) for result in (task, other)]
            assert found == pytest.approx([getattr(alone, name)] * 2, rel=1e-4), name
        assert task.accuracy == other.accuracy == alone.accuracy
    assert [task.accuracy is None for task in both.tasks] == [False, True]


def test_the_accuracy_is_that_of_the_adapter_that_is_written(tmp_path):
    rows = rows_of(*(OPTIONS * 3))
    held = write(tmp_path / "held.jsonl", *rows[::2])
    how = SMALL | {"max_steps": 6, "eval_data": held, "eval_strategy": "epoch", "quiet": True}
    file = write(tmp_path / "rows.jsonl", *rows)
    made = train(
        SPEC, tiny_model("llama"), file, tmp_path / "out", tokenizer=tiny_tokenizer(), **how
    )
    _, batch = batch_of(tmp_path / "again.jsonl", *rows[::2])
    with torch.no_grad():
        right = are_likeliest(*learned_logits(made.model, made.model.forward, batch))
    assert made.accuracy == float(right.float().mean())


def test_the_best_adapter_may_be_the_one_that_is_most_often_right(tmp_path):
    rows = rows_of(*(OPTIONS * 3))
    held, file = (write(tmp_path / f"{i}.jsonl", *rows[i::2]) for i in (0, 1))
    how = SMALL | {"max_steps": 4, "eval_data": held, "load_best_model_at_end": True, "quiet": True}
    how |= {f"{word}_strategy": "steps" for word in ("eval", "save")}
    how |= {"eval_steps": 1, "save_steps": 1, "tokenizer": tiny_tokenizer()}
    how |= {"metric_for_best_model": "eval_accuracy"}
    made = train(SPEC, tiny_model("llama"), file, tmp_path / "out", **how)
    found = [entry["eval_accuracy"] for entry in made.history if "eval_accuracy" in entry]
    assert made.accuracy == max(found)
    for metric, data in (("eval_f1", held), ("accuracy", None)):
        how |= {
            "metric_for_best_model": metric,
            "eval_data": data or write(tmp_path / "n.jsonl", {"text": "a"}),
        }
        with pytest.raises(BishareError, match=r"BS732.*`metric_for_best_model` cannot be"):
            train(SPEC, tiny_model("llama"), file, tmp_path / "no", **how)


def test_options_of_other_formats_are_not_passed_over(tmp_path):
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(BishareError, match=r"BS726.*they go with a `completion` that is a text"):
        batch_of(tmp_path / "r.jsonl", chat | {"options": ["b", "c"]})
    for says in ("Fair", "fair "):
        row = {"prompt": "a ", "completion": says, "options": ["fair", "dear"]}
        with pytest.raises(BishareError, match=r"(?s)BS726.*write `fair` as the completion"):
            batch_of(tmp_path / "r.jsonl", row)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_option_whose_logit_is_not_finite_is_not_the_likeliest(value):
    """The correct option is the first, which `argmax` takes among equals."""
    logits = torch.full((1, 1, 3), value)
    assert not are_likeliest(logits, torch.zeros(1, 1, dtype=torch.long)).any()
    finite = torch.tensor([[[2.0, 1.0, -torch.inf]]])
    assert are_likeliest(finite, torch.zeros(1, 1, dtype=torch.long)).all()
