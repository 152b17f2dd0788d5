"""Experts in the layouts that vLLM has for them: loaded by its own functions, into its own slots; and merged.

What comes out of a forward with LoRA is not compared: on the CPU vLLM 0.32 has no kernel for it at experts.
"""

import gc

import pytest
import torch
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from bishare_dsl import compile_spec
from bishare_dsl.convert.effective import delta
from tests.models.test_weights import mixture
from tests.serve_vllm import conftest
from tests.support.checks import randomize

MORE = {**conftest.SIZES, "eos_token_id": 1, "num_hidden_layers": 2, "max_position_embeddings": 64}
SHARED = """spec s
target parent experts, q_proj
share q    per module                                      rank 1  where expert == none
share up   A per layer, kind  B per layer, kind, expert    rank 3  where gate_proj, up_proj
share down A per layer, kind, expert  B per layer, kind    rank 2  where down_proj
"""
SOME = """spec s
target up_proj, down_proj
share some  per module  rank 2  where expert in 1..2
"""


def slots(model):
    """Return, for each layer, the slots of the first adapter: A and B of gate, down and up, experts in front."""
    found = {}
    for name, module in model.named_modules():
        if (wide := getattr(module, "w13_lora_a_stacked", None)) is not None:
            gate_a, up_a = wide
            gate_b, up_b = module.w13_lora_b_stacked
            down_a, down_b = module.w2_lora_a_stacked[0], module.w2_lora_b_stacked[0]
            both = (gate_a, gate_b), (down_a, down_b), (up_a, up_b)
            found[name] = [(a[0].clone(), b[0].clone()) for a, b in both]
    return found


@pytest.mark.parametrize(
    ("family", "layout", "text"),
    [
        ("olmoe", "vllm", SHARED),
        ("mixtral", "vllm", SHARED),
        ("qwen3_moe", "vllm", SOME),
        ("mixtral", "sglang", SHARED),
    ],
)
def test_vllm_loads_what_bishare_computes(family, layout, text, tmp_path):
    # Two heads of 32: of OLMoE vLLM reads no `head_dim`, but divides the width by the heads.
    model = mixture(family, **MORE, num_attention_heads=2)
    model.save_pretrained(tmp_path / "base")
    compile_spec(text, model)
    randomize(model, 1, frozen=False)
    model.bishare.export(tmp_path / "lora", layout)
    settings = {"max_lora_rank": 8, "lora_target_modules": None}
    with conftest.engine(tmp_path / "base", **settings) as llm:
        assert llm.llm_engine.add_lora(LoRARequest("a", 1, str(tmp_path / "lora")))
        (worker,) = llm.collective_rpc(lambda self: self)
        manager = worker.model_runner.lora_manager._adapter_manager
        manager.activate_adapter(1)
        (found,) = llm.apply_model(slots)
        del worker, manager
    assert len(found) == 2
    plan, tensors = model.bishare.plan, model.bishare.tensors()
    for site in plan.sites:
        if site.expert is None:
            continue
        layer = next(layer for name, layer in found.items() if f".{site.layer}." in name)
        a, b = layer[("gate_proj", "down_proj", "up_proj").index(site.kind)]
        a, b = (f[min(site.expert, len(f) - 1)] for f in (a, b))
        torch.testing.assert_close(b @ a, delta(plan, tensors, site))
    gc.collect()


def test_a_merged_mixture_is_served_on_a_cpu(tmp_path):
    model = mixture("mixtral", **MORE, num_attention_heads=2).eval()
    compile_spec(SHARED, model)
    randomize(model, 1, frozen=False)
    prompt = [5, 9, 13, 2, 7]
    with torch.no_grad():
        want = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    model.bishare.merge_and_unload().save_pretrained(tmp_path / "merged")
    sampling = SamplingParams(max_tokens=1, logprobs=5, temperature=0)
    with conftest.engine(tmp_path / "merged", enable_lora=False) as llm:
        (found,) = llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
    for token, value in found.outputs[0].logprobs[0].items():
        assert value.logprob == pytest.approx(want[token].item(), abs=1e-4)
