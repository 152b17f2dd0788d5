"""``bishare generate``, on a tiny checkpoint."""

from __future__ import annotations

import json

import pytest
import torch

from bishare_dsl import compile_spec
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, and an adapter that does something."""
    folder = tmp_path_factory.mktemp("made")
    model = tiny_model("llama", max_position_embeddings=128)
    model.save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    compile_spec("lora", model)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.copy_(0.5 * torch.randn(tensor.shape, generator=random))
    model.bishare.save_pretrained(folder / "one")
    return folder


@pytest.fixture
def generate(bishare, made, monkeypatch):
    monkeypatch.chdir(made)

    def run(*arguments, **more):
        short = [] if "--max_new_tokens" in arguments else ["--max_new_tokens", 8]
        return bishare("generate", *arguments, "--model", "tiny", *short, **more)

    return run


def test_one_answer_is_the_text_alone(generate):
    run = generate("one", "--prompt", "hello")
    answer = json.loads(generate("one", "--prompt", "hello", "--json").out)["answers"][0]
    assert (run.code, run.out) == (0, answer["text"] + "\n")
    assert run.err == "loading tiny ...\n"
    assert (answer["model"], answer["tokens"], answer["finish"]) == ("one", 8, "length")


def test_models_and_prompts_are_told_apart(generate, made):
    (made / "prompt.txt").write_text("from a\nfile\n")
    command = ["one", "--base", "--prompt", "hello", "--prompt-file", "prompt.txt"]
    run = generate(*command, "--prompt-file", "-", stdin=b"typed\n")
    heads = [line for line in run.out.splitlines() if line.startswith("== ")]
    assert heads == [
        f"== {model}: {prompt}"
        for model in ("base", "one")
        for prompt in ("hello", "from a file", "typed")
    ]
    run = generate(*command, "--json")
    answers = json.loads(run.out)["answers"]
    assert [answer["prompt"] for answer in answers] == ["hello", "from a\nfile"] * 2
    assert answers[0]["text"] != answers[2]["text"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {}),
        (["--do_sample"], {"do_sample": True}),
        (["--no_do_sample"], {"do_sample": False}),
        (["--temperature", "0"], {"do_sample": False}),
        (["--temperature", "0.5"], {"do_sample": True, "temperature": 0.5}),
        (["--top_k", "3", "--top_p", "0.9"], {"do_sample": True, "top_k": 3, "top_p": 0.9}),
        (["--num_beams", "2"], {"num_beams": 2}),
    ],
)
def test_options_are_those_of_generate(generate, monkeypatch, given, expected):
    from transformers import LlamaForCausalLM

    seen = {}
    real = LlamaForCausalLM.generate

    def watch(self, **settings):
        seen.update(settings)
        return real(self, **settings)

    monkeypatch.setattr(LlamaForCausalLM, "generate", watch)
    assert generate("--prompt", "a", *given).code == 0
    for name in ("input_ids", "attention_mask", "streamer"):
        seen.pop(name)
    assert seen == {"max_new_tokens": 8, **expected}


def test_on_a_terminal_the_text_comes_as_it_is_made(generate, monkeypatch):
    plain = generate("one", "--prompt", "hello").out
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("_pytest.capture.CaptureIO.isatty", lambda _: True, raising=False)
    seen = []
    monkeypatch.setattr(
        "transformers.TextStreamer.on_finalized_text",
        lambda self, text, stream_end=False: seen.append(text),
    )
    assert generate("one", "--prompt", "hello").out == ""
    assert "".join(seen) == plain.removesuffix("\n")


def test_the_chat_template_is_the_default(generate, made, tmp_path, monkeypatch, bishare):
    tiny_model("llama", max_position_embeddings=128).save_pretrained(tmp_path / "tiny")
    tiny_tokenizer(TEMPLATE).save_pretrained(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    common = ["--model", "tiny", "--max_new_tokens", 6]
    chat = bishare("generate", "--prompt", "hi", "--system", "go", *common).out
    plain = bishare("generate", "--prompt", "<system>go<user>hi", "--no-chat", *common).out
    assert chat == plain != bishare("generate", "--prompt", "hi", "--no-chat", *common).out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], "BS901"),
        (["--prompt", ""], "BS901"),
        (["--prompt", "a", "--no-chat", "--system", "b"], "BS901"),
        (["--prompt", "a", "--do_sample", "--temperature", "0"], "BS901"),
        (["--prompt", "a", "--no_do_sample", "--top_k", "3"], "BS901"),
        (["--prompt-file", "nowhere"], "BS904"),
        (["--prompt-file", "one/adapter.safetensors"], "BS904"),
        (["nowhere", "--prompt", "a"], "BS601"),
        (["--prompt", "a", "--chat"], "BS807"),
        (["--prompt", "a", "--max_new_tokens", "500"], "BS810"),
    ],
)
def test_what_cannot_be_is_wrong_usage(generate, arguments, code):
    run = generate(*arguments)
    assert (run.code, run.out) == (2, "")
    assert f"error[{code}]" in run.err
    assert ("loading" in run.err) == (code == "BS810")
