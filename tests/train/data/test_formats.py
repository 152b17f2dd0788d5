"""Formats are known by their columns, and every row is checked."""

import pytest

from bishare_dsl.train.data.encoding import encode
from bishare_dsl.train.data.formats import split_off

USER = {"role": "user", "content": "fox"}
ASSISTANT = {"role": "assistant", "content": "dog"}


@pytest.fixture
def encoded(tokenizer, rows):
    def run(*values, template="chatml", **options):
        return encode(rows(*values), tokenizer(template), max_length=1000, **options)

    return run


def read(encoded, tokenizer):
    return tokenizer("chatml").backend_tokenizer.decode(
        encoded.examples[0]["input_ids"], skip_special_tokens=False
    )


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"instruction": "fox", "output": "dog"}, "alpaca"),
        ({"instruction": "fox", "input": None, "output": "dog", "id": 3}, "alpaca"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "prompt-completion"),
        ({"messages": [USER, ASSISTANT], "prompt": "fox"}, "messages"),
        ({"conversations": [USER, ASSISTANT]}, "messages"),
        ({"conversations": [{"from": "human", "value": "fox"}, {"from": "gpt", "value": "dog"}]}, "messages"),
        ({"messages": [{**USER, "tool_calls": None}, {**ASSISTANT, "tool_calls": []}]}, "messages"),
    ],
)  # fmt: skip
def test_forms_of_one_chat(row, format, encoded, tokenizer):
    found = encoded(row)
    assert found.report.format == format
    assert read(found, tokenizer) == (
        "<|im_start|>system\nYou are helpful.<|im_end|>\n"
        "<|im_start|>user\nfox<|im_end|>\n<|im_start|>assistant\ndog<|im_end|>\n"
    )


def test_the_input_of_alpaca_follows_its_instruction(encoded, tokenizer):
    row = {"instruction": "Say", "input": "fox", "output": "dog"}
    assert "user\nSay\n\nfox<|im_end|>" in read(encoded(row), tokenizer)


@pytest.mark.parametrize("given", ["", "{quick}"])
def test_alpaca_without_a_chat_template(given, encoded, tokenizer):
    row = {"instruction": "Say {x}", "input": given, "output": "dog"}
    text = read(encoded(row, template=None), tokenizer)
    asked = "\n\n### Instruction:\nSay {x}\n\n" + (given and f"### Input:\n{given}\n\n")
    assert text.startswith("Below is an instruction that describes a task")
    assert text.endswith(f"{asked}### Response:\ndog</s>")
    assert ("further context" in text) == bool(given)


@pytest.mark.parametrize(
    ("row", "code", "said"),
    [
        ({"question": "a", "answer": "b"}, "BS709", "call `question` `prompt` and call `answer` `completion`"),
        ({"instruction": "a", "context": "b", "response": "c"}, "BS709", "`output` and call `context` `input`"),
        ({"url": "a", "body": {"messages": []}}, "BS709", "name columns"),
        ({"error": {"message": "a"}}, "BS709", "a server's error"),
        ({"Prompt": "a", " completion": "b"}, "BS709", "call `Prompt` `prompt` and call ` completion` `completion`"),
        ({"id": 1}, "BS709", "the first row of `rows.jsonl` has the columns `id`, and no format has these name"),
        ({}, "BS709", "no columns"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "BS709", "TRL's `DPOTrainer` does"),
        ({"row_idx": 0, "row": {"text": "a"}}, "BS709", "each example is the object in `row`"),
        ({"instruction": "a", "output": "b", "text": "c"}, "BS710", "alpaca, text"),
        ({"prompt": "a", "completion": "b", "messages": []}, "BS710", "prompt-completion, messages"),
    ],
)  # fmt: skip
def test_columns_of_no_format_or_of_several(row, code, said, encoded, rows, problems):
    [problem] = problems(encoded, row)
    assert (problem.code, said in f"{problem.message} {problem.help}") == (code, True)
    [problem] = problems(split_off, rows(row, row), 1, 0)
    assert problem.code == code


@pytest.mark.parametrize(
    ("row", "code", "said"),
    [
        ({"instruction": "a", "outptu": "b"}, "BS711", "this row has `instruction`, `outptu`, and all rows have `output`"),
        ({"instruction": "a", "output": 1}, "BS712", 'as text it is `"1"`'),
        ({"instruction": "a", "output": float("nan")}, "BS712", "is NaN, a missing value; text is expected leave the row out"),
        ({"messages": [USER, {"role": "bot", "content": "a"}]}, "BS713", "it is `assistant`"),
        ({"messages": {"messages": []}}, "BS712", "is an object; a list of messages is expected write a list"),
        ({"instruction": "a"}, "BS711", "`output` is missing"),
        ({"instruction": "a", "output": None}, "BS712", "`output` is null; text is expected"),
        ({"instruction": "a", "input": ["x"], "output": "b"}, "BS712", "`input` is a list; text"),
        ({"instruction": "a", "output": "\ud83d"}, "BS712", "text with half a surrogate pair"),
        ({"instruction": " ", "input": "x", "output": "b"}, "BS714", "`instruction` is empty"),
        ({"messages": "a"}, "BS712", "`messages` is text; a list of messages"),
        ({"messages": [3]}, "BS712", "`messages[0]` is a number; a message"),
        ({"messages": [USER, {"content": "a"}]}, "BS711", "`messages[1].role` is missing"),
        ({"messages": [USER, ASSISTANT | {"content": None}]}, "BS712", "`messages[1].content` is null"),
        ({"messages": [USER, ASSISTANT | {"content": [{"type": "text"}]}]}, "BS712", "is a list of parts; text"),
        ({"messages": [USER | {"content": ""}, ASSISTANT]}, "BS714", "`messages[0].content` is empty"),
        ({"messages": [USER, {"role": "asistant", "content": "a"}]}, "BS713", "`messages[1].role` is `asistant`"),
        ({"messages": [USER, {"role": "human", "content": "a"}]}, "BS713", "`messages[1].role` is `human`"),
        ({"messages": [{"from": "user_", "value": "a"}]}, "BS713", "`messages[0].role` is `user_`"),
        ({"messages": [{"from": "human"}]}, "BS711", "`messages[0].content` is missing"),
    ],
)  # fmt: skip
def test_bad_rows(row, code, said, encoded, problems):
    good = {"instruction": "a", "output": "b"}
    good = {"messages": [USER, ASSISTANT]} if "messages" in row else good
    [problem] = problems(encoded, good, row)
    assert problem.code == code
    assert problem.message.startswith("rows.jsonl:2: ")
    assert said in f"{problem.message} {problem.help}"
