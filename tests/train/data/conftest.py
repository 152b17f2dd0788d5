"""Tiny tokenizers built in memory, and chat templates of the kinds that are about."""

from itertools import groupby

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bishare_dsl.diagnostics import DataError
from bishare_dsl.train.data.load import Rows

SPECIAL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "[INST]", "[/INST]", "<|assistant|>", "<|user|>", "<think>", "</think>",
]  # fmt: skip
WORDS = (
    " the quick brown fox says hello to a lazy dog\n\nsystem user assistant You are helpful." * 9
)

TEMPLATES = {
    # With a system prompt of its own, as SmolLM2's and Qwen2.5's.
    "chatml": r"""{% for message in messages %}
{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}
{% endif %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    # Trims, and begins with the beginning-of-sequence token.
    "llama3": r"""{% for message in messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim %}
{{ (bos_token if loop.first else '') + content + '<|eot_id|>' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    # No generation prompt, a space before what is trained on, no end-of-turn token but the end of sequence,
    # and the system prompt in the last turn of the user.
    "mistral": r"""{{ bos_token }}
{% set ns = namespace(system='') %}
{% for message in messages %}
{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}{% endif %}
{% endfor %}
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + (ns.system if loop.index0 >= messages | length - 2 else '') + message['content'] + '[/INST]' }}
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}
{% elif message['role'] != 'system' %}{{ raise_exception('Only user and assistant roles are supported!') }}
{% endif %}
{% endfor %}""",
    # Turns end with nothing at all.
    "no end": r"""{% for message in messages %}
{{ message.role + ': ' + message.content + '\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}""",
    # Turns end with words that are not tokens.
    "plain end": r"""{% for message in messages %}
{{ '# ' + message.role + '\n' + message.content + '\n(end)\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '# assistant\n' }}{% endif %}""",
}
TEMPLATES = {name: template.replace("\n", "") for name, template in TEMPLATES.items()}


@pytest.fixture(scope="session")
def _bytes():
    """A byte-level tokenizer with some merges, across line breaks and spaces too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s*\n+| ?\w+|."), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([WORDS], trainer)
    return tokenizer.to_str()


@pytest.fixture(scope="session")
def tokenizer(_bytes):
    """``tokenizer(template, adds=("<s>",))`` puts these tokens before every text that is not a chat."""

    def make(template=None, *, adds=(), adds_end=(), eos="</s>"):
        backend = Tokenizer.from_str(_bytes)
        backend.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=True),
                processors.TemplateProcessing(
                    single=[*adds, "$A", *adds_end],
                    special_tokens=[(t, backend.token_to_id(t)) for t in {*adds, *adds_end}],
                ),
            ]
        )
        made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=eos)
        made.add_special_tokens({"additional_special_tokens": SPECIAL[:-2]})
        made.chat_template = TEMPLATES.get(template, template)
        return made

    return make


@pytest.fixture(scope="session")
def rows():
    """Rows as they are after reading."""

    return lambda *values: Rows(
        "rows.jsonl", values, [f"rows.jsonl:{i + 1}" for i, _ in enumerate(values)]
    )


@pytest.fixture(scope="session")
def chat():
    """``chat("user: Hi", "assistant: Hello")`` is a row."""

    def make(*turns):
        split = [turn.split(": ", 1) for turn in turns]
        return {"messages": [{"role": role, "content": content} for role, content in split]}

    return make


@pytest.fixture(scope="session")
def trained():
    """Return the trained parts of an example, as texts."""

    def found(example, tokenizer):
        runs = groupby(example["labels"], key=lambda label: label != -100)
        parts = [list(labels) for is_trained, labels in runs if is_trained]
        return [tokenizer.backend_tokenizer.decode(p, skip_special_tokens=False) for p in parts]

    return found


@pytest.fixture(scope="session")
def problems():
    """The problems that a call raises."""

    def found(call, *args, **options):
        with pytest.raises(DataError) as caught:
            call(*args, **options)
        return list(caught.value.problems)

    return found
