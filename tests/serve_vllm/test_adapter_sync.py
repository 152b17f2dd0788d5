"""GRPO on a vLLM server that gets the adapter after each update, and examples/grpo.py, which does it."""

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bishare_dsl import load_adapter
from tests.serve_vllm.served import Server, prompts_of, save_base

sys.path.append(str(Path(__file__).parents[2] / "examples"))
STEPS = 4


class Engine(Server):
    """A server of a tiny base, in plain or in compact mode."""

    def __init__(self, root, compact):
        self.model = save_base(root / "base", "llama", max_position_embeddings=128)
        words = "--dtype float32 --max-lora-rank 16 --max-loras 2 --max-cpu-loras 4"
        words += " --max-num-seqs 4 --logprobs-mode processed_logprobs"
        more = ["--additional-config", '{"bishare_slots_gib": 1}'] if compact else []
        super().__init__(root, words, *more, length=128, VLLM_SERVER_DEV_MODE="1")

    def log_probabilities(self, name, ids):
        """Of one new token after each prompt, which vLLM on a CPU can give beside LoRA."""
        body = {"model": name, "prompt": ids, "max_tokens": 1, "temperature": 1, "logprobs": 5}
        body["return_tokens_as_token_ids"] = True
        found = json.loads(self.call("/v1/completions", body)[1])
        top = found["choices"][0]["logprobs"]["top_logprobs"][0]
        return {int(token.removeprefix("token_id:")): value for token, value in top.items()}

    def names(self):
        return {one["id"] for one in json.loads(self.call("/v1/models")[1])["data"]}


@pytest.fixture(scope="module", params=["plain", "compact"])
def engine(request, tmp_path_factory):
    torch.manual_seed(0)
    with Engine(tmp_path_factory.mktemp(request.param), request.param == "compact") as engine:
        yield engine


def test_after_each_update_the_engine_is_the_trainer(engine, tmp_path, monkeypatch):
    import grpo

    from bishare_dsl.integrations.trl import Published

    root, seen, real = tmp_path, [], Published.sync_weights

    def synchronise(self):
        real(self)
        name, model = self.vllm_client.model, self.model.get_base_model()
        assert engine.names() == {"base", name}
        model.eval()
        for prompt in prompts_of(3, shared=10):
            with torch.no_grad():
                wanted = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            for token, value in engine.log_probabilities(name, prompt).items():
                assert value == pytest.approx(float(wanted[token]), abs=2e-4)
        model.train()
        seen.append(wanted)

    monkeypatch.setattr(Published, "sync_weights", synchronise)
    rows = [{"prompt": "a b c", "answer": "a"}, {"prompt": "c b", "answer": "b"}] * 8
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = f"--max_steps {STEPS} --learning_rate 5e-2 --use_cpu --bf16 False --logging_steps 1"
    words += " --per_device_train_batch_size 4 --num_generations 4 --max_completion_length 6"
    words += f" --use_vllm True --vllm_mode server --vllm_server_base_url {engine.url} --seed 3"
    params = ["--adapter", "tiny_lora", "--params", '{"count": 4}', "--save_strategy", "no"]
    files = ["--data", root / "rows.jsonl", "--model", engine.log.name.replace("log", "base")]
    files += ["--output_dir", root / "out"]
    trainer = grpo.main([*map(str, files), *words.split(), *params])
    assert len(seen) == STEPS
    moved = [float((a - b).abs().max()) for a, b in itertools.pairwise(seen)]
    assert max(moved) > 1e-3
    history, name = trainer.state.log_history[:-1], "sampling/sampling_logp_difference/max"
    assert max(entry[name] for entry in history) < 2e-4
    last = load_adapter(root / "out", engine.model)
    kind = json.loads(next((root / "out/adapter-sync").glob("*/adapter_config.json")).read_text())
    assert kind["peft_type"] == ("BISHARE" if "compact" in engine.log.name else "LORA")
    assert last.bishare.plan.trainable <= 640
    assert load_file(root / "out/adapter_model.safetensors")
    last.bishare.unload()
