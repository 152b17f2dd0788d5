"""vLLM loads what `convert` makes of other layouts, and an adapter of bishare in bfloat16, in one engine."""

import pytest
import torch

from bishare_dsl import compile_spec
from bishare_dsl.convert.export import export_adapter
from bishare_dsl.loading import read_fitting
from tests.serve_vllm.conftest import engine
from tests.serve_vllm.served import CHUNKS, moved, prompts_of, save_base

TEXT = "spec s\ntarget q_proj, k_proj, down_proj\nshare x per layer, kind rank 3 scale 0.5\n"


def test_it_gives_the_log_probabilities_of_what_was_converted(tmp_path):
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    base = save_base(tmp_path / "base", "llama")
    adapted = compile_spec(TEXT, base)
    moved(adapted, 1)
    requests, wanted = [], []
    prompt = prompts_of(1)[0]

    def expect(model, name):
        requests.append(LoRARequest(name, 1 + len(requests), str(tmp_path / name)))
        with torch.no_grad():
            found = model(torch.tensor([prompt])).logits[0].log_softmax(-1)[:-1]
        wanted.append(found.gather(1, torch.tensor(prompt)[1:, None]).flatten())

    plan, tensors = adapted.bishare.plan, adapted.bishare.tensors()
    for source in ("sglang", "peft"):
        first = tmp_path / source
        export_adapter(first, plan, tensors, base, source)
        stored, _ = read_fitting(first, base)
        for target in ("peft", "vllm", "sglang"):
            out = f"{source}-{target}"
            export_adapter(tmp_path / out, stored.plan, stored.tensors(), base, target)
            expect(adapted, out)
    adapted.bishare.save_pretrained(tmp_path / "half", dtype="bfloat16")
    stored, _ = read_fitting(tmp_path / "half", base)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(stored.tensors()[name])
    expect(adapted, "half")
    assert (wanted[0] - wanted[-1]).abs().max() > 1e-4  # Rounded values, and not those before.
    with engine(tmp_path / "base", **CHUNKS, max_loras=8, max_cpu_loras=8) as llm:
        outputs = llm.generate(
            [{"prompt_token_ids": prompt}] * len(requests),
            SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False),
            lora_request=requests,
            use_tqdm=False,
        )
    for expected, output in zip(wanted, outputs, strict=True):
        places = zip(output.prompt_logprobs[1:], prompt[1:], strict=True)
        found = torch.tensor([place[token].logprob for place, token in places])
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
