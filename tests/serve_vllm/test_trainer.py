"""A trainer and an engine in one process: after each step of GRPO both give the same log-probabilities."""

import os
import warnings

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from bishare_dsl import compile_spec
from bishare_dsl.serve.vllm.memory import write_adapter
from examples.smollm2 import smollm2_folder
from tests.serve_vllm.conftest import engine

BLOCKS = int(os.environ.get("BLOCKS", "6"))
STEPS, NEW, PROMPTS = 10, 6, ["The capital of France is", "Two and two are"]


def test_after_each_of_ten_steps_of_grpo(tmp_path):
    """On the first blocks of SmolLM2-135M with TRL's trainer, whose completions the engine gives.

    All thirty take minutes: BLOCKS=30 in the environment runs them.
    """
    torch.manual_seed(0)
    folder = str(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        smollm2_folder(), num_hidden_layers=BLOCKS, dtype=torch.float32
    )
    model.save_pretrained(folder)
    compile_spec("bishare_ke", model, params={"size": 64}, seed=0)
    model.bishare.save_pretrained(tmp_path / "adapter")
    adapter = LoRARequest("trained", 1, str(tmp_path / "adapter"))
    ask = SamplingParams(
        temperature=1, max_tokens=NEW, logprobs=0, ignore_eos=True, detokenize=False, seed=0
    )
    rounds = []

    def complete(prompts, trainer):
        """Write the trained tensors into the engine, let it complete prompts, and hold it to the trainer."""
        if rounds:
            llm.collective_rpc(write_adapter, args=(1, model.bishare.tensors()))
            llm.reset_prefix_cache()
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        answers = llm.generate(
            [{"prompt_token_ids": one} for one in ids], ask, lora_request=adapter, use_tqdm=False
        )
        new = [list(answer.outputs[0].token_ids) for answer in answers]
        given = [
            [place[token].logprob for place, token in zip(a.outputs[0].logprobs, one, strict=True)]
            for a, one in zip(answers, new, strict=True)
        ]
        for prompt, one, found in zip(ids, new, given, strict=True):
            with torch.no_grad():
                logits = model.eval()(torch.tensor([prompt + one])).logits[0]
            own = logits.log_softmax(-1)[-1 - NEW : -1].gather(1, torch.tensor(one)[:, None])
            torch.testing.assert_close(torch.tensor(found), own.flatten(), rtol=0, atol=1e-4)
        model.train()
        rounds.append(given)
        return {"prompt_ids": ids, "completion_ids": new, "logprobs": given}

    with (
        engine(
            folder,
            skip_tokenizer_init=False,
            lora_target_modules=None,
            additional_config={"bishare_plans": [adapter.lora_path]},
        ) as llm,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        trainer = GRPOTrainer(
            model,
            reward_funcs=lambda completions, **_: [float(text.count("e")) for text in completions],
            args=GRPOConfig(
                str(tmp_path / "run"),
                max_steps=STEPS,
                learning_rate=3e-3,
                per_device_train_batch_size=4,
                num_generations=2,
                max_completion_length=NEW,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
            processing_class=tokenizer,
            rollout_func=complete,
        )
        trainer.train()
        complete(PROMPTS, trainer)
    assert len(rounds) == STEPS + 1
    # The same tokens are drawn until training has moved them.
    assert len({str(given[0]) for given in rounds[-5:]}) > 1
