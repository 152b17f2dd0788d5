"""Verdicts about llama.cpp, by its library behind a stand-in for its server."""

import pytest
import torch

from bishare_dsl import load_adapter
from bishare_dsl.models.load import load_model
from bishare_dsl.verify.judge import judge
from bishare_dsl.verify.server import Server
from tests.verify.served import Engine, ask_one, serving

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp_py_sync._cffi_bindings")


def test_an_export_that_libllama_applies_and_one_that_it_does_not(
    base, lora, contents, reference, tmp_path
):
    from tests.export.gguf_base import write_base
    from tests.export.libllama import llama

    model, _ = load_model(str(base))
    write_base(tmp_path / "base.gguf", model)
    load_adapter(lora, model)
    model.bishare.export(tmp_path / "mine.gguf", format="gguf")
    with llama(tmp_path / "base.gguf") as plain, llama(tmp_path / "base.gguf") as adapted:
        adapted.use(tmp_path / "mine.gguf")

        class LlamaEngine(Engine):
            def choice(self, name, text, top):
                engine = adapted if name == "mine" else plain
                logits = engine.logits(self.tokenizer(text)["input_ids"])[-1]
                values, tokens = torch.log_softmax(logits, -1).topk(top)
                names = [f"token_id:{i}" for i in tokens.tolist()]
                return dict(zip(names, values.tolist(), strict=True))

        engine = LlamaEngine(base)
        engine.llama, engine.adapters = True, {"mine": {}, "forgotten": {}}
        with serving(engine) as url:
            server = Server(url)
            for name, word in (("mine", "APPLIED"), ("forgotten", "NOT APPLIED")):
                asked = ask_one(server, name)
                found = judge(asked, name, contents, reference)
                assert found.word == word, (found.why, found.numbers)
            assert asked.noise == 0
