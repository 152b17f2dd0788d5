"""Another process, which loads what this one has written: `python -m tests.lives.other`, a request for each line."""

import os
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import torch

from bishare_dsl import load_adapter
from bishare_dsl.diagnostics import BishareError


@cache
def process():
    """Start it once; its strings have other hashes, so that nothing may depend on the order of a set."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.lives.other"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )


def logits_there(folder, base, inputs):
    """Return the logits of an adapter that another process loads into a copy of a base.

    Args:
        folder: of the adapter; the base and the inputs go into the folder above.
        base: the model.
        inputs: by keyword.
    """
    torch.save((base, dict(inputs)), Path(folder).parent / "given")
    other = process()
    other.stdin.write(f"{folder}\n")
    other.stdin.flush()
    answer = other.stdout.readline().strip()
    assert answer == "done", answer or f"the other process ended with {other.poll()}"
    return torch.load(Path(folder).parent / "logits")


def main():
    """Answer requests until there are none."""
    from tests.lives.life import logits_of

    warnings.simplefilter("ignore")
    for line in sys.stdin:
        folder = Path(line.strip())
        base, inputs = torch.load(folder.parent / "given", weights_only=False)
        try:
            model = load_adapter(folder, base).eval()
            with torch.no_grad():
                torch.save(logits_of(model(**inputs)), folder.parent / "logits")
            answer = "done"
        except (BishareError, RuntimeError) as error:
            answer = str(error).replace("\n", " / ")
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
