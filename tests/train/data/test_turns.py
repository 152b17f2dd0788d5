"""Which part of a chat is trained on, for the chat templates that are about."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bishare_dsl.train.data.encoding import encode

# What is to be trained on of a content, in the middle of a chat and at its end.
TRAINED = {
    "chatml": lambda said, last: said + "<|im_end|>",
    "llama3": lambda said, last: said.strip() + "<|eot_id|>",
    "mistral": lambda said, last: f" {said}</s>",
    "no end": lambda said, last: " " + said.rstrip() + ("</s>" if last else ""),
    "plain end": lambda said, last: said + "\n(end)" + ("</s>" if last else ""),
}
PIECES = st.sampled_from(
    ["\n", "\n\n", " ", "  ", "hello", " fox", "é", "🦜", ":", "</", "(end)", "\t"]
)
SAID = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cn"]), min_size=1, max_size=12),
    st.lists(PIECES, min_size=1, max_size=8).map("".join),
).filter(str.strip)


@pytest.mark.parametrize("template", TRAINED)
@given(said=st.lists(SAID, min_size=1, max_size=3), asked=SAID, system=st.none() | SAID)
def test_trained_is_what_the_assistant_says_and_what_ends_it(
    template, said, asked, system, tokenizer, rows, trained
):
    made = tokenizer(template)
    messages = [{"role": "system", "content": system}] if system else []
    for content in said:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": content}]
    [example] = encode(rows({"messages": messages}), made, max_length=10_000).examples
    wanted = [TRAINED[template](text, i == len(said) - 1) for i, text in enumerate(said)]
    assert trained(example, made) == wanted
    # And the whole is what the template writes, token for token but at the edges of turns.
    text = made.apply_chat_template(messages, tokenize=False)
    ended = text.rstrip() + "</s>" if template in ("no end", "plain end") else text
    assert made.backend_tokenizer.decode(example["input_ids"], skip_special_tokens=False) == ended


def test_the_tokens_are_those_that_the_tokenizer_gives(tokenizer, rows, chat):
    made = tokenizer("chatml")
    row = chat("user: the fox", "assistant: hello", "user: a dog", "assistant: quick")
    [example] = encode(rows(row), made, max_length=100).examples
    assert example["input_ids"] == made.apply_chat_template(row["messages"], return_dict=False)


def test_a_prompt_is_read_as_the_model_reads_it_when_it_generates(tokenizer, rows, chat):
    """Here the line break that ends the prompt and those that begin the answer are one token."""
    made = tokenizer("chatml")
    row = chat("user: the fox", "assistant: \n\nhello")
    prompt = made.apply_chat_template(
        row["messages"][:1], add_generation_prompt=True, return_dict=False
    )
    whole = made.apply_chat_template(row["messages"], return_dict=False)
    assert whole[: len(prompt)] != prompt
    [example] = encode(rows(row), made, max_length=100).examples
    assert example["input_ids"][: len(prompt)] == prompt
    assert example["labels"][: len(prompt)] == [-100] * len(prompt)


def test_other_keys_of_a_message_reach_the_template(tokenizer, rows, trained):
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{% generation %}{{ m.thought }}{{ m.content }}</s>"
        "{% endgeneration %}{% endfor %}"
    )
    made = tokenizer(template)
    messages = [
        {"role": "user", "content": "fox", "thought": None},
        {"role": "assistant", "content": "dog", "thought": "hello "},
    ]
    [example] = encode(rows({"messages": messages}), made, max_length=50).examples
    assert trained(example, made) == ["hello dog</s>"]


# Templates that say themselves what is generated.

MARKED = r"""{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>
{%- generation %}{{ ' ' + m.content }}{% if end_inside %}{{ eos_token + '\n' }}{% endif %}{% endgeneration %}
{%- if not end_inside %}{{ eos_token + '\n' }}{% endif %}
{%- else %}<|user|>{{ m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


@pytest.mark.parametrize("inside", ["true", "false"])
def test_markers_count_and_the_end_of_turn_is_trained_with_them(
    inside, tokenizer, rows, chat, trained
):
    made = tokenizer(MARKED.replace("end_inside", inside))
    row = chat("user: fox", "assistant: dog", "user: a", "assistant: hello")
    [example] = encode(rows(row), made, max_length=100).examples
    assert trained(example, made) == [" dog</s>", " hello</s>"]


# Templates from which it cannot be told.

OTHER_PROMPT = """{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>{% endif %}"""
STRIPS = """{% for m in messages %}<|{{ m.role }}|>
{%- if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        # Nothing is generated.
        (MARKED.replace("' ' + m.content", "' '").replace("end_inside", "false"), "marks nothing"),
        # The model is prompted with something else.
        (OTHER_PROMPT, "does not begin"),
        # What an earlier turn is depends on what follows it.
        (STRIPS, "turn 2 is written otherwise"),
    ],
)
def test_a_template_that_hides_the_turns_is_an_error(
    template, reason, tokenizer, rows, chat, problems
):
    row = chat("user: fox", "assistant: dog", "user: fox", "assistant: dog")
    [problem] = problems(encode, rows(row), tokenizer(template), max_length=100)
    assert problem.code == "BS720"
    assert problem.message.startswith("rows.jsonl:1: ")
    assert reason in problem.message
    # Without a loss on turns it does not matter.
    assert encode(rows(row), tokenizer(template), max_length=100, train_on="all").examples


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no, thanks') }}", "no, thanks"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{{ messages | first + 1 }}", "unsupported operand"),
        ("{% for m in messages %}{{ m.content.__class__.__mro__ }}{% endfor %}", "unsafe"),
    ],
)
def test_what_a_template_refuses_is_located(template, reason, tokenizer, rows, chat, problems):
    good = chat("user: fox", "assistant: dog")
    made = tokenizer(template)
    [first, second] = problems(encode, rows(good, good), made, max_length=100)
    assert {first.code, second.code} == {"BS719"}
    assert second.message.startswith("rows.jsonl:2: ")
    assert reason in second.message
