"""The JSON schema of a spec, for tools that write or check specs as JSON.

``python -m bishare_dsl.spec.schema FILE`` writes it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bishare_dsl.spec.spec import Spec


def schema() -> str:
    """Write the text of ``spec.schema.json``."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return f"{json.dumps(head | Spec.model_json_schema(), indent=2)}\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(schema(), encoding="utf-8", newline="\n")
