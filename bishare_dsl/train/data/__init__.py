"""Training data: read, checked row by row, encoded with the loss where it belongs, packed, collated.

rows = load_rows("train.jsonl")                              # or .json, .csv, .parquet, a Hub id
rows, held_out = split_off(rows, 0.01, seed=0)
encoded = encode(rows, tokenizer, max_length=1024)
print(encoded.report)
examples = pack(encoded.examples, max_length=1024)           # if wanted
collator = Collator.of(tokenizer)
"""

from bishare_dsl.train.data.collate import Collator, check_packing
from bishare_dsl.train.data.encode import Encoded, encode
from bishare_dsl.train.data.examples import Example, Examples
from bishare_dsl.train.data.formats import Format
from bishare_dsl.train.data.load import load_rows
from bishare_dsl.train.data.pack import pack
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
