"""``bishare generate``, on a tiny checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaForCausalLM

from bishare_dsl import compile_spec, load_adapter
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


def test_one_answer_is_the_text_alone_of_the_model_s_own_generate(generate):
    run = generate("one", "--prompt", "hello")
    answers = json.loads(generate("one", "--prompt", "hello", "--json").out)["answers"]
    assert (run.code, run.err) == (0, "loading tiny ...\n")
    assert answers == [{"model": "one", "text": run.out.removesuffix("\n")}]
    tokenizer = tiny_tokenizer()
    model = load_adapter("one", LlamaForCausalLM.from_pretrained("tiny"))
    inputs = tokenizer("hello", return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    assert answers[0]["text"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_models_are_told_apart(generate):
    run = generate("one", "--base", "--prompt", "of two\nlines")
    heads = [line for line in run.out.splitlines() if line.startswith("== ")]
    assert heads == ["== base", "== one"]
    data = generate("one", "--base", "--prompt", "of two\nlines", "--json")
    base, one = (answer["text"] for answer in json.loads(data.out)["answers"])
    assert run.out == f"== base\n{base}\n== one\n{one}\n"
    assert base != one


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {}),
        (["--set", "num_beams=2"], {"num_beams": 2}),
        (["--set", "temperature=0.5"], {"do_sample": True, "temperature": 0.5}),
        (["--set", "top_p=0.9", "-s", "do_sample=false"], {"do_sample": False, "top_p": 0.9}),
        (["--set", "stop_strings=x"], {"stop_strings": "x"}),
    ],
)
def test_options_are_those_of_generate(generate, monkeypatch, given, expected):
    seen = {}
    real = LlamaForCausalLM.generate

    def watch(self, inputs, **settings):
        seen.update(settings)
        return real(self, inputs, **settings)

    monkeypatch.setattr(LlamaForCausalLM, "generate", watch)
    assert generate("--prompt", "a", *given).code == 0
    for name in ("attention_mask", "streamer", "tokenizer"):
        seen.pop(name)
    assert seen == {"max_new_tokens": 8, **expected}


def test_models_that_draw_draw_alike(generate):
    drawn = ("--prompt", "hello", "--set", "temperature=2.0", "--seed", "3", "--json")
    again, once = (json.loads(generate(*drawn).out) for _ in range(2))
    assert once == again
    many = json.loads(generate(*drawn, "--set", "num_return_sequences=2").out)["answers"]
    assert len({answer["text"] for answer in many}) == 2


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


def test_the_chat_template_is_the_default(tmp_path, monkeypatch, bishare):
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
        (["--prompt", "a", "--system", "b"], "BS901"),
        (["--prompt", "a", "--chat"], "BS901"),
        (["nowhere", "--prompt", "a"], "BS601"),
        (["--prompt", "a", "--set", "warm=1"], "BS806"),
    ],
)
def test_what_cannot_be_is_told(generate, arguments, code):
    run = generate(*arguments)
    assert (run.code, run.out) == (1 if code == "BS806" else 2, "")
    assert f"error[{code}]" in run.err
