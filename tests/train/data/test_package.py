"""The package loads what is used."""

import json
import subprocess
import sys

import bishare_dsl.train.data as data

PROGRAM = """
import json, sys
from bishare_dsl.diagnostics import DataError
from bishare_dsl.train.data import load_rows

try:
    load_rows("no.jsonl")
except DataError as error:
    print(json.dumps([error.problems[0].code, sorted(sys.modules)]))
"""


def test_a_set_is_looked_for_without_torch():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    code, modules = json.loads(done.stdout)
    assert code == "BS701"
    assert not {"torch", "transformers", "datasets", "numpy"} & {*modules}


def test_every_name_is_there():
    assert {name: getattr(data, name) for name in data.__all__}
    assert callable(data.encode)
    assert callable(data.pack)
