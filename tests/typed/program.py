"""A user's program: `mypy --strict` and `pyright` accept it (`test_typed.py`)."""

# ruff: noqa: T201

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import bishare_dsl
from bishare_dsl import Plan, Spec, compile_spec, handle, load_adapter, parse_spec, plan_spec
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.peft import BishareConfig

TEXT = """spec mine
param r = 2
target q_proj, v_proj
share s  per layer, kind  rank r
"""


def base_model() -> LlamaForCausalLM:
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    config.num_attention_heads = config.num_key_value_heads = 4
    return LlamaForCausalLM(config)


def plan() -> Plan:
    spec: Spec = parse_spec(TEXT)
    planned = plan_spec(spec, base_model(), params={"r": 4})
    print(planned.trainable, [term.rank for term in planned.terms], planned.digest)
    return planned


def adapt(folder: Path) -> LlamaForCausalLM:
    model = compile_spec(TEXT, base_model(), params={"r": 4}, seed=1)
    adapter = handle(model)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3)
    ids = torch.arange(8).view(1, 8)
    loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
    torch.autograd.backward(loss)
    optimizer.step()
    adapter.save_pretrained(folder, dtype="bfloat16", frozen="seed")
    with adapter.disable_adapter(), torch.no_grad():
        model(input_ids=ids)
    report = adapter.merge()
    print(report.modules, report.max_rounding, report.survival.kept)
    adapter.unmerge()
    exported = adapter.export(folder / "lora", "peft", rank=2)
    print(exported.worst, adapter.plan.trainable, sorted(adapter.tensors()))
    adapter.set_scale(adapter.name, 0.5)
    return load_adapter(folder, base_model())


def with_peft() -> PeftModel:
    config = BishareConfig(spec=TEXT, params={"r": 4}, task_type="CAUSAL_LM")
    model = get_peft_model(base_model(), config)
    assert isinstance(model, PeftModel)
    handle(model).print_trainable_parameters()
    return model


if __name__ == "__main__":
    print(bishare_dsl.__version__, plan().spec)
    try:
        print(type(adapt(Path("out"))), type(with_peft()))
    except BishareError as error:
        print(error.problems[0].code)
