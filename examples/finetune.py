"""Teach a chat model to answer requests: a training loop in plain PyTorch, and batched answers.

Nothing here knows of bishare: an adapted model is trained and asked as any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from plain_english import Example
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel, PreTrainedTokenizerBase

SYSTEM = "Write a .share statement."
END_OF_TURN = "<|im_end|>"


def prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": example.request},
    ]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    steps: int,
    batch_size: int,
    lr: float = 1e-2,
) -> Iterator[float]:
    """Train what requires grad; yield the loss of each step.

    The loss is over the answers alone, their end-of-turn token included, or a model never learns to stop.
    The learning rate is far above full fine-tuning's, as B starts at zero; it rises over 5 steps, then falls.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 5, (steps - step) / steps)
    )
    model.train()
    for step in range(steps):
        first = step * batch_size % len(examples)
        loss = _loss(model, *_batch(tokenizer, examples[first : first + batch_size]))
        loss.backward()
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield loss.item()
    model.eval()


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> list[str]:
    """What the model answers to each request, greedily, in one batch."""
    prompts = [prompt(tokenizer, example) for example in examples]
    # Padded on the left, so that every answer starts right behind its prompt.
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad():
        output = model.generate(
            **inputs.to(model.device),
            max_new_tokens=48,
            do_sample=False,
            eos_token_id=tokenizer.convert_tokens_to_ids(END_OF_TURN),
            pad_token_id=tokenizer.pad_token_id,
        )
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _batch(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, their attention mask, and which tokens belong to an answer; each ``(batch, tokens)``."""
    rows = []
    for example in examples:
        asked = tokenizer(prompt(tokenizer, example))["input_ids"]
        answered = tokenizer(example.answer + END_OF_TURN)["input_ids"]
        rows.append((asked + answered, len(asked)))
    shape = len(rows), max(len(tokens) for tokens, _ in rows)
    tokens = torch.full(shape, tokenizer.pad_token_id)
    mask = torch.zeros(shape, dtype=torch.long)
    answered = torch.zeros(shape, dtype=torch.bool)
    for row, (ids, start) in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
        answered[row, start : len(ids)] = True
    return tokens, mask, answered


def _loss(
    model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor, answered: torch.Tensor
) -> torch.Tensor:
    hidden = model.model(tokens, attention_mask=mask, use_cache=False).last_hidden_state
    # A token is predicted at the one before it. Most of the vocabulary's work is on prompts: leave it out.
    counted = answered[:, 1:]
    return cross_entropy(model.lm_head(hidden[:, :-1][counted]), tokens[:, 1:][counted])
