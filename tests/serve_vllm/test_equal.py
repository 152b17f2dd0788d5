"""vLLM gives the log-probabilities of bishare: prompts in chunks, cached prefixes, and one token at a time."""

import asyncio
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.folder.files import save_library
from tests.serve_vllm.conftest import engine
from tests.serve_vllm.served import (
    CHUNKS,
    LINEAR,
    ROOM,
    Served,
    manager_in,
    moved,
    prompts_of,
    save_base,
)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def base(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    return root, save_base(root / "base", request.param)


def test_without_compact_mode_adapters_are_plain_loras(base, tmp_path, monkeypatch):
    """All specs on one server, each written once, and plain LoRA of PEFT beside them.

    A slot stays free: on a CPU, vLLM 0.32 adds what is in the last one to requests for the base.
    """
    root, model = base
    monkeypatch.setenv("BISHARE_CACHE", str(tmp_path))
    room = {"max_loras": 2 * len(LINEAR) + 1, "max_cpu_loras": 2 * len(LINEAR) + 1}
    with engine(root / "base", **CHUNKS, **room) as llm:
        for number, spec in enumerate(LINEAR):
            served = Served(root, model, spec, 2, first=1 + 10 * number)
            if spec == "lora":
                folder = root / "peft"
                model.bishare.export(folder)
                served.requests[1] = type(served.requests[1])("peft", 999, str(folder))
            served.check(llm, prompts_of(4))
            model = model.bishare.unload()
    assert len([*(tmp_path / "vllm").iterdir()]) == 2 * len(LINEAR) - 1


@pytest.mark.parametrize("eager", [True, False])
def test_several_plans_in_one_batch(base, eager):
    """Slots for each plan are made when its first adapter comes; plain LoRA of PEFT is one of the plans.

    Rows with magnitudes stand beside rows without.
    """
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    root, model = base
    prompts, requests = prompts_of(11), [None]
    specs = ("bishare_ke", "vera", "lora", "dora", "ia3", "bishare_ss")
    ask = SamplingParams(temperature=0, max_tokens=4, logprobs=0, detokenize=False)

    def answers(prompts, requests):
        found = llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            ask,
            lora_request=requests,
            use_tqdm=False,
        )
        return [[(*place.items(),)[0] for place in one.outputs[0].logprobs] for one in found]

    room = {"bishare_slots_gib": 1.2e-3}
    with engine(
        root / "base",
        **CHUNKS | {"max_num_seqs": 11, "max_loras": 10, "max_cpu_loras": 10},
        additional_config=room,
        enforce_eager=eager,
    ) as llm:
        for number, spec in enumerate(specs):
            served = Served(root, model, spec, 2, first=1 + 10 * number)
            if spec == "lora":
                folder = root / f"peft-{eager}"
                model.bishare.export(folder)
                served.requests[1] = type(served.requests[1])("peft", 999, str(folder))
            if spec != "bishare_ss":
                served.check(llm, prompts[:3])
                requests += served.requests[:2]
            else:
                with pytest.raises(VLLMValidationError, match="BS657"):
                    served.check(llm, prompts[:1])
                with pytest.raises(AdapterError, match="BS657"):
                    llm.llm_engine.add_lora(served.requests[0])
            model = model.bishare.unload()
        llm.reset_prefix_cache()
        together = answers(prompts, requests)
        for prompt, request, found in zip(prompts, requests, together, strict=True):
            (alone,) = answers([prompt], [request])
            for (token, one), (other, two) in zip(found, alone, strict=True):
                assert token == other
                assert abs(one.logprob - two.logprob) < 5e-5


def test_sixty_four_adapters_in_one_batch(base):
    root, model = base
    served = Served(root, model, "bishare_ke", 64)
    plan = {"bishare_plans": [served.requests[0].lora_path]}
    room = {"max_loras": 64, "max_num_seqs": 65, "max_num_batched_tokens": 2048}
    with engine(root / "base", **room, additional_config=plan) as llm:
        outputs = served.check(llm, prompts_of(65))
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) > 20
    model.bishare.unload()


def test_a_trainer_writes_the_tensors_of_an_adapter_from_memory(base):
    """While it is in a slot, and while it waits; with a magnitude, which is computed again."""
    from bishare_dsl.serve.vllm.memory import write_adapter

    root, model = base
    if "qwen3" in root.name:
        pytest.skip("nothing in it depends on the base")
    served = Served(root / "memory", model, "dora", 2)
    plan = {"additional_config": {"bishare_plans": [served.requests[1].lora_path]}}
    with engine(root / "base", **CHUNKS, max_loras=1, max_cpu_loras=2, **plan) as llm:
        served.check(llm, prompts_of(3))  # The second is in the slot.
        for step in range(4):
            served.tensors[0] = moved(model, 100 + step)
            llm.collective_rpc(write_adapter, args=(1, served.tensors[0]))
            llm.reset_prefix_cache()
            served.check(llm, prompts_of(1 if step < 3 else 3))
        found = served.tensors[0]
        spoilt = {name: torch.full_like(tensor, torch.nan) for name, tensor in found.items()}
        flat = {name: tensor.flatten() for name, tensor in found.items()}
        for wrong, code in ((spoilt, "BS694"), ({}, "BS609"), (flat, "BS611")):
            with pytest.raises(AdapterError, match=code):
                llm.collective_rpc(write_adapter, args=(1, wrong))
            served.check(llm, prompts_of(3))
    model.bishare.unload()


def test_what_is_damaged_behind_the_check_does_not_stop_the_engine(base):
    """Its requests go on with the base, for they were taken; the next ones are right when it is mended."""
    root, model = base
    served = Served(root / "damaged", model, "bishare_ke", 3)
    from vllm.exceptions import VLLMValidationError

    first, second, *_ = served.requests
    extra = {"additional_config": {"bishare_plans": [second.lora_path]}}
    one = {"max_loras": 1, "max_cpu_loras": 1}
    prompts = prompts_of(4)
    with engine(
        root / "base", **CHUNKS | {"enable_prefix_caching": False}, **ROOM | one, **extra
    ) as llm:
        served.check(llm, prompts)
        file = Path(first.lora_path) / "adapter_model.safetensors"
        times, content = file.stat(), file.read_bytes()
        own = served.tensors[0]
        nothing = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
        for found, served.tensors[0] in ((content[:-1] + b"?", nothing), (content, own)):
            with file.open("r+b") as opened:
                opened.write(found)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
            served.check(llm, prompts)
        file.write_bytes(content[:-1])
        with pytest.raises(VLLMValidationError, match="BS608"):
            served.check(llm, prompts)
        file.write_bytes(content)
        # Plain LoRA of PEFT, of values that are no numbers.
        spoilt = root / "spoilt"
        model.bishare.export(spoilt)
        tensors = load_file(spoilt / "adapter_model.safetensors")
        next(iter(tensors.values()))[0, 0] = torch.nan
        save_file(tensors, spoilt / "adapter_model.safetensors")
        with pytest.raises(AdapterError, match="BS694"):
            llm.llm_engine.add_lora(type(first)("spoilt", 99, str(spoilt)))
        served.check(llm, prompts)
    model.bishare.unload()


def as_it_is(name, folder, base):
    return str(folder)


@pytest.mark.parametrize("compact", [False, True])
def test_the_adapters_of_a_library(base, compact):
    from bishare_dsl.serve.vllm.resolver import FolderResolver

    root, model = base
    served = Served(root, model, "bishare_ke", 2)
    plan = model.bishare.plan
    for name in plan.common:
        served.tensors[1][name] = served.tensors[0][name]
    library = root / f"library-{compact}"
    each = dict(zip(("law", "code"), served.tensors, strict=True))
    save_library(library, plan, each, model.bishare.spec_text, seed=0)
    request = type(served.requests[0])
    served.requests[:2] = [
        request(name, number, f"{library}#{name}") for number, name in enumerate(each, 70)
    ]
    extra = {"additional_config": {"bishare_plans": [f"{library}#law"]}} if compact else {}
    with engine(root / "base", **CHUNKS, **ROOM, **extra) as llm:
        served.check(llm, prompts_of(6))

    def resolved(folder, name):
        resolver = FolderResolver(str(folder), as_it_is)
        return asyncio.run(resolver.resolve_lora(str(root / "base"), name))

    assert resolved(root, f"{library.name}#law").lora_path == f"{library}#law"
    assert resolved(library, "code").lora_path == f"{library}#code"
    assert resolved(library, "lwa") is None
    model.bishare.unload()


class Library(Served):
    """Adapters of a library: what they share is that of the first one."""

    def __init__(self, root, model, spec, count, first=1):
        super().__init__(root, model, spec, count, first)
        self.plan = model.bishare.plan
        for tensors in self.tensors[1:]:
            tensors |= {name: self.tensors[0][name] for name in self.plan.common}
        folder = root / f"library-of-{spec}-{first}"
        each = {f"c{i}": tensors for i, tensors in enumerate(self.tensors)}
        save_library(folder, self.plan, each, model.bishare.spec_text, seed=0)
        request = type(self.requests[0])
        self.requests[:-1] = [
            request(f"{folder.name}#c{i}", first + i, f"{folder}#c{i}") for i in range(count)
        ]
        self.shared = sum(t.size for t in self.plan.tensors if t.name in self.plan.common)
        self.own = self.plan.trainable - sum(
            t.size for t in self.plan.tensors if t.name in self.plan.common and t.trainable
        )


@pytest.mark.parametrize("spec", ["library_core", "library_joint"])
def test_a_hundred_adapters_share_one_copy_of_what_their_library_shares(base, spec):
    """In slots and in host memory, where each takes its own numbers and nothing else."""
    root, model = base
    if "qwen3" in root.name:
        pytest.skip("nothing in it depends on the base")
    served = Library(root / f"hundred-of-{spec}", model, spec, 100)
    every = served.requests[:-1], served.tensors
    extra = {"additional_config": {"bishare_slots_gib": 1}}
    with engine(root / "base", **CHUNKS, max_loras=8, max_cpu_loras=100, **extra) as llm:
        for chosen in (range(8), range(40, 48), range(100), range(3, 11)):
            served.requests = [every[0][i] for i in chosen] + [None]
            served.tensors = [every[1][i] for i in chosen]
            served.check(llm, prompts_of(len(chosen) + 1))
        manager = manager_in(llm)
        adapters = manager.list_adapters()
        waiting = [lora.packed for lora in adapters.values() if lora.packed is not None]
        (bank,) = manager.banks.values()
        assert (len(adapters), len(waiting)) == (100, 92)
        assert bank.memory.nbytes == 4 * (9 * served.own + served.shared)
        assert sum(packed.untyped_storage().nbytes() for packed in waiting) == 4 * 92 * served.own
    model.bishare.unload()
