"""A client of `examples/tinker_server.py` by the SDK alone; it prints what it saw as JSON.

python tinker_client.py URL BASE RANK train SEED [STATE] | errors
"""

import json
import sys
import time

import numpy as np
import tinker
from tinker import types

url, base, rank, what, *more = sys.argv[1:]
client = tinker.ServiceClient(base_url=url, api_key="tml-secret")


def datum(tokens, **inputs):
    given = inputs or {"weights": np.ones(len(tokens) - 1, np.float32)}
    targets = np.array(tokens[1:], np.int64)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": targets, **given},
    )


def losses(training, seed, first, last):
    """Train by cross-entropy, importance sampling of the client's own samples, and a loss of its own."""
    seen = []
    for step in range(first, last):
        some = np.random.default_rng([seed, step])
        rows = [some.integers(3, 60, 6 + seed + i).tolist() for i in range(3)]
        if step % 3 == 0:
            future = training.forward_backward([datum(row) for row in rows], "cross_entropy")
        elif step % 3 == 1:
            sampler = training.save_weights_and_get_sampling_client()
            how = types.SamplingParams(max_tokens=5, temperature=1.0, seed=step, stop=[])
            prompt = types.ModelInput.from_ints(rows[0])
            got = sampler.sample(prompt, 2, how).result().sequences
            seen.append([[s.tokens, s.logprobs] for s in got])
            data = []
            for sequence in got:
                before = np.zeros(len(rows[0]) - 1, np.float32)
                old = np.concatenate([before, np.array(sequence.logprobs, np.float32)])
                advantages = np.concatenate([before, some.normal(size=5).astype(np.float32)])
                tokens = [*rows[0], *sequence.tokens]
                data.append(datum(tokens, logprobs=old, advantages=advantages))
            future = training.forward_backward(data, "importance_sampling")
        else:
            future = training.forward_backward_custom(
                [datum(row) for row in rows],
                lambda data, found: (-sum(part.mean() for part in found), {"mine": 1.0}),
            )
        adam = types.AdamParams(learning_rate=1e-2, grad_clip_norm=1.0, weight_decay=0.01 * seed)
        stepped = training.optim_step(adam)
        output = future.result()
        seen.append([part["logprobs"].to_numpy().tolist() for part in output.loss_fn_outputs])
        seen.append(stepped.result().metrics["grad_norm:mean"])
        time.sleep(0.01 * seed)
    return seen


def errors():
    training = client.create_lora_training_client(base_model=base, rank=int(rank)).result()
    good, wrong = datum([3, 4, 5, 6]), types.ModelInput.from_ints([3, 4])
    training.save_state("same").result()
    nan = datum([3, 4], weights=np.array([np.nan], np.float32))

    def begin(**how):
        return client.create_lora_training_client(**{"base_model": base, "rank": int(rank)} | how)

    def sample():
        sampler = client.create_sampling_client(model_path="tinker://x/sampler_weights/y")
        return sampler.sample(wrong, 1, types.SamplingParams(max_tokens=1))

    def intrude():
        other = tinker.ServiceClient(base_url=url, api_key="tml-wrong")
        return other.create_lora_training_client(base_model=base, rank=int(rank))

    masked = datum([3, 4], mask=np.ones(1))
    tries = {
        "a loss": lambda: training.forward_backward([good], "cispo"),
        "a token": lambda: training.forward_backward([datum([3, 4, 9999])], "cross_entropy"),
        "an input": lambda: training.forward_backward([masked], "ppo"),
        "no number": lambda: training.forward_backward([nan], "cross_entropy"),
        "a base": lambda: begin(base_model="nope"),
        "a rank": lambda: begin(rank=77),
        "twice": lambda: training.save_state("same"),
        "no state": lambda: training.load_state("tinker://a/weights/b"),
        "optimizer": lambda: training.optim_step(types.DimuonParams(learning_rate=1e-3)),
        "sampler": sample,
        "key": intrude,
    }
    said = {}
    for name, attempt in tries.items():
        try:
            said[name] = f"nothing: {attempt().result()}"
        except Exception as error:  # noqa: BLE001 - whatever the SDK raises
            said[name] = f"{type(error).__name__}: {error}"
    # Each failed request has used up its number, and the next ones run.
    said["after"] = str(training.forward([good], "cross_entropy").result(timeout=60).metrics.keys())
    return said


if what == "train":
    seed = int(more[0])
    if len(more) == 1:
        training = client.create_lora_training_client(
            base_model=base, rank=int(rank), seed=seed
        ).result()
        seen = losses(training, seed, 0, 6)
        state = training.save_state("after-six").result().path
        named = training.save_weights_for_sampler("named").result().path
        seen += losses(training, seed, 6, 9)
    else:
        state, named = more[1:3]
        training = client.create_training_client_from_state_with_optimizer(state).result()
        seen = losses(training, seed, 6, 9)
    sampler = client.create_sampling_client(model_path=named)
    greedy = types.SamplingParams(max_tokens=4, temperature=0.0, stop=[])
    prompt = types.ModelInput.from_ints([5, 6, 7])
    answer = sampler.sample(prompt, 1, greedy, include_prompt_logprobs=True).result()
    info = training.get_info()
    result = {
        "seen": seen, "state": state, "named": named, "rank": info.lora_rank,
        "greedy": [answer.sequences[0].tokens, answer.prompt_logprobs],
    }  # fmt: skip
else:
    result = errors()
sys.stdout.write(json.dumps(result))
