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
    from bishare_dsl.train.data.collate import Collator as Collator
    from bishare_dsl.train.data.collate import check_packing as check_packing
    from bishare_dsl.train.data.encoding import DataReport as DataReport
    from bishare_dsl.train.data.encoding import Encoded as Encoded
    from bishare_dsl.train.data.encoding import encode as encode
    from bishare_dsl.train.data.examples import Example as Example
    from bishare_dsl.train.data.examples import Examples as Examples
    from bishare_dsl.train.data.examples import pack as pack
    from bishare_dsl.train.data.formats import Format as Format
    from bishare_dsl.train.data.formats import split_off as split_off
    from bishare_dsl.train.data.load import load_rows as load_rows
    from bishare_dsl.train.data.rows import Rows as Rows

_HOMES = {
    "collate": "Collator check_packing",
    "encoding": "DataReport Encoded encode",
    "examples": "Example Examples pack",
    "formats": "Format split_off",
    "load": "load_rows",
    "rows": "Rows",
}
_NAMES = {n: f"{__name__}.{home}" for home, names in _HOMES.items() for n in names.split()}

__all__ = [*_NAMES]
__getattr__ = lazy(__name__, _NAMES)
