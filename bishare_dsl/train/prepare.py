"""What a run needs before it begins: the tokenizer, the encoded rows, the base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bishare_dsl.diagnostics.codes.evaluate import NO_TOKENIZER
from bishare_dsl.models import Source
from bishare_dsl.models.load import load_model, load_tokenizer
from bishare_dsl.train.data.encoding import Encoded, encode
from bishare_dsl.train.errors import TrainError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.train.data.rows import Rows
    from bishare_dsl.train.reporter import Reporter
    from bishare_dsl.train.request import Request, Settings


def find_tokenizer(
    request: Request, base: PreTrainedModel | Source, given: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """Return the tokenizer that was given, or the checkpoint's.

    Raises:
        TrainError: there is none (BS805).
    """
    if given is None and isinstance(base, Source):
        given = load_tokenizer(base)
    if given is None:
        raise TrainError(
            NO_TOKENIZER(model=request.model if isinstance(base, Source) else "the model")
        )
    return given


def encode_as_asked(rows: Rows, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> Encoded:
    """Encode rows by the settings of a run. Errors are as for `encode`."""
    return encode(
        rows,
        tokenizer,
        max_length=settings.max_length,
        train_on=settings.train_on,
        format=settings.format,
    )


def load_base(
    request: Request, base: PreTrainedModel | Source, reporter: Reporter
) -> PreTrainedModel:
    """Return the model that was given, or load the one that was named."""
    if not isinstance(base, Source):
        return base
    settings = request.settings
    reporter.note(f"loading {request.model} ...")
    bits = 4 if settings.load_in_4bit else 8 if settings.load_in_8bit else None
    return load_model(base, dtype=settings.dtype, device=settings.device_map, bits=bits)[0]
