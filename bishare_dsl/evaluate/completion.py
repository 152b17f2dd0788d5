"""Generating with a model as it stands, by its own ``generate()``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bishare_dsl.diagnostics.codes import evaluate as codes
from bishare_dsl.evaluate.candidates import require_tokenizer
from bishare_dsl.evaluate.errors import EvaluateError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True)
class Completion:
    """What a model wrote; ``tokens`` counts it. ``finish`` says whether it came to an end by itself, or by
    a stop string, or was cut at the number of tokens."""

    text: str
    tokens: int
    finish: Literal["stop", "length"]


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    prompt: str,
    *,
    chat: bool | None = None,
    system: str | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    max_new_tokens: int = 256,
    streamer: BaseStreamer | None = None,
    **generation: Any,
) -> Completion:
    """Let a model go on from a prompt.

    Args:
        model: as it is to be used, in eval mode.
        tokenizer: the model's.
        prompt: the text, or what the user says where there is a chat template.
        chat: put the prompt into the tokenizer's chat template; by default if it has one.
        system: what the chat template says before.
        stop: strings that end the text; the one that did is part of it.
        seed: of Python, numpy and torch, set anew each time, so that models that are compared draw alike.
        max_new_tokens: the most that are generated.
        streamer: shown the text as it comes.
        **generation: what ``generate()`` takes, such as ``temperature`` and ``num_beams``.

    Raises:
        EvaluateError: no tokenizer or no chat template (BS805, BS807), or too long a prompt (BS810).
    """
    from transformers import set_seed

    name = model.config.name_or_path or type(model).__name__
    tokenizer = require_tokenizer(tokenizer, name, chat=bool(chat) or system is not None)
    if chat or (chat is None and tokenizer.chat_template):
        turns = [{"role": "system", "content": system}] if system is not None else []
        turns.append({"role": "user", "content": prompt})
        encoded: Any = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        encoded = tokenizer(prompt, return_tensors="pt")
    inputs = {name: encoded[name].to(model.device) for name in ("input_ids", "attention_mask")}
    length = inputs["input_ids"].shape[1]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and length + max_new_tokens > limit:
        raise EvaluateError(
            codes.PROMPT_TOO_LONG(
                prompt=length,
                new=max_new_tokens,
                limit=limit,
                model=name,
                help=f"`--max_new_tokens {limit - length}` fits" if length < limit else None,
            )
        )
    if stop:
        generation |= {"stop_strings": list(stop), "tokenizer": tokenizer}
    if model.generation_config.pad_token_id is None:
        pad = tokenizer.pad_token_id
        generation.setdefault("pad_token_id", tokenizer.eos_token_id if pad is None else pad)
    set_seed(seed)
    output = model.generate(  # type: ignore[operator]
        **inputs, max_new_tokens=max_new_tokens, streamer=streamer, **generation
    )
    new = output[0, length:]
    text = str(tokenizer.decode(new, skip_special_tokens=True))
    ends = model.generation_config.eos_token_id
    ended = (
        len(new) < max_new_tokens
        or int(new[-1]) in (ends if isinstance(ends, list) else [ends])
        or any(string in text for string in stop)
    )
    return Completion(text, len(new), "stop" if ended else "length")
