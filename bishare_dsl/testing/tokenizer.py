"""A tokenizer for the tiny models: a character is a token.

>>> tiny_tokenizer()("ab")["input_ids"]
[6, 7]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Of the 64 that a tiny model knows; `<pad>`, `<s>` and `</s>` are where its config has them.
_TOKENS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    *"\n abcdefghijklmnopqrstuvwxyz0123456789.,:;?!'\"()[]+-*/=<>#",
]


def tiny_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer with no merges and no case, whose ids fit every model of `tiny_model`.

    It needs no file, and can be saved beside a model.
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
