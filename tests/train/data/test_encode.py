"""Texts to tokens: where they begin and end, what is trained on, what is cut, and what is counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bishare_dsl.train.data.encoding import encode

WORDS = st.text(st.sampled_from(" \nabé🦜:"), max_size=8)


def decoded(example, tokenizer):
    return tokenizer.backend_tokenizer.decode(example["input_ids"], skip_special_tokens=False)


@pytest.mark.parametrize("adds", [(), ("<s>",)])
@given(prompt=WORDS.filter(str.strip), completion=WORDS.filter(str.strip))
def test_a_completion_is_trained_with_an_end(adds, prompt, completion, tokenizer, rows, trained):
    made = tokenizer(adds=adds)
    row = {"prompt": prompt, "completion": completion}
    [example] = encode(rows(row), made, max_length=99).examples
    assert trained(example, made) == [completion + "</s>"]
    assert decoded(example, made) == "".join(adds) + prompt + completion + "</s>"
    # What stands before it is what the model reads when it is prompted.
    asked = made(prompt)["input_ids"]
    assert example["input_ids"][: len(asked)] == asked


@pytest.mark.parametrize(
    ("adds", "text", "wanted"),
    [
        ((), "fox", "fox</s>"),
        (("<s>",), "fox", "<s>fox</s>"),
        (("<s>",), "<s>fox</s>", "<s>fox</s>"),
        ((), "<s>fox</s>", "<s>fox</s>"),
    ],
)
@pytest.mark.parametrize("adds_end", [(), ("</s>",), ("<|eot_id|>",)])
def test_a_text_has_one_beginning_and_one_end(adds, adds_end, text, wanted, tokenizer, rows):
    made = tokenizer(adds=adds, adds_end=adds_end)
    [example] = encode(rows({"text": text}), made, max_length=99).examples
    assert decoded(example, made) == wanted
    # All of it is trained on, but for the first token: nothing predicts it.
    assert example["labels"] == [-100, *example["input_ids"][1:]]


def test_all_tokens(tokenizer, rows, chat):
    made = tokenizer("llama3")
    row = chat("user: fox", "assistant: dog")
    for value in (
        row,
        {"prompt": "the", "completion": " fox"},
        {"prompt": "the", "completion": ""},
    ):
        [example] = encode(rows(value), made, max_length=99, train_on="all").examples
        assert example["labels"] == [-100, *example["input_ids"][1:]]
    text = made.apply_chat_template(row["messages"], tokenize=False)
    [example] = encode(rows(row), made, max_length=99, train_on="all").examples
    assert decoded(example, made) == text
    # A chat that its template does not end is ended.
    [example] = encode(rows(row), tokenizer("no end"), max_length=99, train_on="all").examples
    assert decoded(example, made) == "user: fox\nassistant: dog</s>"


def test_rows_are_cut_at_their_end_and_counted(tokenizer, rows, trained):
    made = tokenizer()
    values = [
        {"prompt": " hello:", "completion": " fox"},  # hello : fox </s>
        {"prompt": " hello:", "completion": " fox fox fox"},
        {"prompt": " hello: hello:", "completion": " fox"},  # hello : hello : | fox </s>
        {"prompt": " hello", "completion": " \n"},
    ]
    encoded = encode(rows(*values), made, max_length=4)
    first, second = encoded.examples
    assert trained(first, made) == [" fox</s>"]
    assert decoded(second, made) == " hello: fox fox"
    assert trained(second, made) == [" fox fox"]
    report = encoded.report
    assert (report.rows, report.kept, report.cut) == (4, 2, 1)
    assert (report.tokens, report.trained_tokens) == (8, 4)
    assert str(report) == (
        "rows.jsonl: 4 rows (prompt-completion), 2 kept with 8 tokens, of which 4 are trained on. "
        "2 dropped with nothing to learn. 1 cut at 4 tokens."
    )
    whole = encode(rows(values[0]), made, max_length=4).report
    assert str(whole).endswith("of which 2 are trained on.")


# Tokenizers that do not have what is needed.


def test_no_chat_template(tokenizer, rows, chat, problems):
    row = chat("user: fox", "assistant: dog")
    [problem] = problems(encode, rows(row), tokenizer(), max_length=9)
    assert problem.code == "BS718"


def test_a_token_on_both_sides_is_trained_where_it_cannot_be_parted(rows):
    """Each text gets a space here, so a prompt and a completion of their own would be another text."""
    pieces = ["▁", "a", "b", "ab", "▁a", "</s>"]
    model = models.BPE({t: i for i, t in enumerate(pieces)}, [("a", "b")])
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    [example] = encode(rows({"prompt": "ba", "completion": "ba"}), made, max_length=9).examples
    assert made.convert_ids_to_tokens(example["input_ids"]) == ["▁", "b", "ab", "a", "</s>"]
    assert [label != -100 for label in example["labels"]] == [False, False, True, True, True]
