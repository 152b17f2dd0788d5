"""From a few examples of a new customer to the first answer of a running vLLM server, without training.

    export VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 VLLM_LORA_RESOLVER_CACHE_DIR=LIBRARY
    vllm serve MODEL --enable-lora --max-loras 64 --additional-config '{"bishare_slots_gib": 1}'
    python examples/new_customer.py LIBRARY MODEL acme.jsonl "998 is" [http://127.0.0.1:8000]

The adapter `acme` is a sum of the library's members, weighted by their losses on the examples. The server
runs in compact mode, has the library's shared tensors already, and looks the new name up when it is asked.
"""

import json
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

from ray_customers import add_customers


def ask(url: str, name: str, prompt: str) -> str:
    """Return the server's answer with an adapter."""
    body = json.dumps({"model": name, "prompt": prompt, "max_tokens": 8, "temperature": 0})
    request = Request(f"{url}/v1/completions", body.encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["text"])


def main() -> None:
    library, model, file, prompt, *rest = sys.argv[1:]
    began = time.monotonic()
    add_customers(library, model, [file])
    added = time.monotonic()
    text = ask(rest[0] if rest else "http://127.0.0.1:8000", Path(file).stem, prompt)
    answered = time.monotonic() - added
    print(f"{prompt}{text}")
    print(
        f"adapter added in {added - began:.1f} s, loading the model included; answer in {answered:.1f} s"
    )


if __name__ == "__main__":
    main()
