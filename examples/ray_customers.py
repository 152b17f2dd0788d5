"""Add customers to one library from many machines, with Ray: one file of examples for each customer.

    pip install ray
    python examples/ray_customers.py LIBRARY MODEL customers/*.jsonl
    python examples/ray_customers.py --here LIBRARY MODEL customers/a*.jsonl    # without Ray

LIBRARY lies in a folder that all machines see. A worker starts the adapters of some customers from the
library's members, and adds them to it under the library's lock. If a worker dies, Ray does its part again;
customers that the library has already are left out.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

AT_ONCE = 20
"""Customers of a worker's part."""


def add_customers(library: str, model: str, files: Sequence[str], **how: object) -> list[str]:
    """Add an adapter for each file to a library, and return their names.

    Args:
        library: the folder, which changes.
        model: of the library.
        files: a customer's examples each; a file's name is the adapter's.
        **how: arguments of `train`; by default members are weighed, and nothing trains.
    """
    from bishare_dsl.folder.files import add_to_library, names_in, read_adapter
    from bishare_dsl.train import train
    from bishare_dsl.writing import lock_name

    known = names_in(library)
    data = {Path(file).stem: file for file in files if Path(file).stem not in known}
    if not data:
        return []
    how = {"start": "mixture", "max_steps": 0, "quiet": True, **how}
    with TemporaryDirectory() as place:
        result = train(None, model, data, f"{place}/run", library=library, **how)
        made = {t.name: read_adapter(t.folder).tensors() for t in result.tasks if t.folder}
        with lock_name(Path(library)):  # Another worker may have added some of them meanwhile.
            known = names_in(library)
            new = {name: tensors for name, tensors in made.items() if name not in known}
            add_to_library(Path(library), new)
    return [*new]


def main() -> None:
    here, words = sys.argv[1] == "--here", [word for word in sys.argv[1:] if word != "--here"]
    library, model, *files = (str(Path(word).absolute()) for word in words)
    parts = [files[i : i + AT_ONCE] for i in range(0, len(files), AT_ONCE)]
    if here:
        done = [add_customers(library, model, part) for part in parts]
    else:
        import ray

        add = ray.remote(max_retries=3)(add_customers)
        done = ray.get([add.remote(library, model, part) for part in parts])
    print(f"{sum(map(len, done))} customers added to {library}")


if __name__ == "__main__":
    main()
