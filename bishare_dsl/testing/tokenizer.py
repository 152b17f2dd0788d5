"""A tokenizer for the tiny models, with one token per character.

>>> tiny_tokenizer()("ab")["input_ids"]
[6, 7]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# 64 tokens, as in a tiny model; `<pad>`, `<s>` and `</s>` have the ids of its config.
_TOKENS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    *"\n abcdefghijklmnopqrstuvwxyz0123456789.,:;?!'\"()[]+-*/=<>#",
]


def tiny_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer without merges and case, whose ids fit every model of `tiny_model`.

    It needs no file, and can be saved with a model.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(_TOKENS)}, unk_token="<unk>")
    )
    characters.normalizer = normalizers.Lowercase()
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=chat_template,
    )
