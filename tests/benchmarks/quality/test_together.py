"""Many tasks in one run: what is left to do, and LoRA that is cut as PEFT cuts it."""

import torch
from peft import LoraConfig, convert_to_lora, get_peft_model
from sweep.methods import HERE, TOGETHER
from sweep.results import Results
from sweep.together import cut, jobs, left

from bishare_dsl import plan_spec
from bishare_dsl.testing.models import tiny_model


def test_a_run_is_left_until_all_of_its_ways_are_there(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    assert [*left(results, 2)] == [(way, seed) for seed in range(2) for way in TOGETHER]
    for way in ("lora_2", "lora"):
        for job in jobs(way, 0):
            results.add(job, {})
    assert [*left(results, 1)] == [("library_4", 0), ("lora", 0)]


def test_what_is_cut_is_what_peft_makes_of_it():
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "up_proj"])
    model = get_peft_model(tiny_model("llama"), config)
    tensors = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
            side = "A" if "lora_A" in name else "B"
            of = name.partition(".lora_")[0].removeprefix("base_model.model.")
            tensors[f"{of}.{side}"] = parameter.detach().clone().t_() if side == "B" else parameter
    _, wanted = convert_to_lora(model, 2)
    cut(tensors, 2)
    for name in [name for name in tensors if name.endswith(".A")]:
        key = f"base_model.model.{name.removesuffix('.A')}.lora_"
        found = tensors[name.removesuffix("A") + "B"].T @ tensors[name]
        peft = wanted[f"{key}B.weight"] @ wanted[f"{key}A.weight"]
        torch.testing.assert_close(found, peft, rtol=0, atol=1e-4)  # of products of up to 10


def test_a_library_of_twelve_has_the_parameters_of_lora_of_rank_two():
    model = tiny_model("llama")
    plan = plan_spec(str(HERE / "library.share"), model)
    assert plan.is_library
    assert {name.rsplit(".", 1)[1] for name in plan.common} == {"A"}
