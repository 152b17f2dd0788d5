"""Training data: read, checked row by row, encoded with the loss where it belongs, packed, collated.

    rows = load_rows("train.jsonl")                     # or .json, .csv, .parquet, a Hub id
    rows, held_out = split_off(rows, 0.01, seed=0)
    encoded = encode(rows, tokenizer, max_length=1024)
    print(encoded.report)
    examples = pack(encoded.examples, max_length=1024)  # if wanted; then also
    check_packing(model, Collator.of(tokenizer))

The names below load what they need when they are first used: a set is found and read without torch.
"""

from typing import TYPE_CHECKING

from bishare_dsl.lazy import lazy

if TYPE_CHECKING:
    from bishare_dsl.train.data.collate import Collator, check_packing
    from bishare_dsl.train.data.encoding import Encoded, encode
    from bishare_dsl.train.data.examples import Example, Examples
    from bishare_dsl.train.data.formats import Format
    from bishare_dsl.train.data.load import load_rows
    from bishare_dsl.train.data.packing import pack
    from bishare_dsl.train.data.report import DataReport
    from bishare_dsl.train.data.rows import Rows
    from bishare_dsl.train.data.split import split_off

__all__ = [
    "Collator",
    "DataReport",
    "Encoded",
    "Example",
    "Examples",
    "Format",
    "Rows",
    "check_packing",
    "encode",
    "load_rows",
    "pack",
    "split_off",
]

_HOMES = {
    "Collator": "collate",
    "DataReport": "report",
    "Encoded": "encoding",
    "Example": "examples",
    "Examples": "examples",
    "Format": "formats",
    "Rows": "rows",
    "check_packing": "collate",
    "encode": "encoding",
    "load_rows": "load",
    "pack": "packing",
    "split_off": "split",
}

__getattr__ = lazy(__name__, {name: f"{__name__}.{home}" for name, home in _HOMES.items()})
