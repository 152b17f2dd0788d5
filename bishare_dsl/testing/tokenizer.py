"""A tokenizer for the tiny models, with one token per character.

>>> tiny_tokenizer()("ab")["input_ids"]
[6, 7]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# 64 tokens, as in a tiny model; `<pad>`, `<s>` and `</s>` have the ids of its config.
_CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz0123456789.,:;?!'\"()[]+-*/=<>#"
_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def tiny_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer without merges and case, whose ids fit every model of `tiny_model`.

    It needs no file, and can be saved with a model.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate([*_SPECIAL.values(), *_CHARACTERS])}
    characters = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    characters.normalizer = normalizers.Lowercase()
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    characters.decoder = decoders.Fuse()
    how = {"chat_template": chat_template, **_SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=characters, **how)
