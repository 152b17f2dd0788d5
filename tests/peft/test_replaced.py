"""The list of what an import of `bishare_dsl.peft` replaces is whole, and the page shows it."""

import json
import re
import subprocess
import sys
from pathlib import Path

from bishare_dsl.peft.replaced import REPLACED

PAGE = Path("docs/peft.md")

_PROGRAM = """
import json, logging, sys
import peft.helpers, peft.optimizers, peft.tuners.lora.arrow, transformers.integrations.peft, trl
import bishare_dsl.adapted.handle
def functions():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("peft", "transformers", "accelerate", "trl", "torch"):
            for key, value in list(vars(module).items()):
                if isinstance(value, type) and value.__module__ == name:
                    owner = value.__qualname__
                    found |= {
                        f"{owner}.{k}": v for k, v in vars(value).items() if callable(v) or isinstance(v, classmethod)
                    }
                elif callable(value):
                    found[f"{name.rpartition('.')[2]}.{key}"] = value
    return found
before = functions()
import bishare_dsl.peft
after = functions()
owners = {name.rpartition(".")[0] for name in before}
print("changed:" + json.dumps([
    name for name, value in after.items()
    if name.rpartition(".")[0] in owners and before.get(name) is not value
]))
"""


def names_of_list():
    owners = ((r.owner, r.name) for r in REPLACED)
    return {f"{owner.__name__.rpartition('.')[2]}.{name}" for owner, name in owners}


def test_nothing_is_replaced_that_the_list_does_not_have():
    """PEFT and transformers are compared function by function before and after the import."""
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, timeout=120
    )
    changed = set(json.loads(run.stdout.partition("changed:")[2]))
    assert changed == names_of_list()


def test_the_page_shows_the_list():
    section = PAGE.read_text("utf-8").partition("## What the import replaces")[2]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)} == names_of_list()
