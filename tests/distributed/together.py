"""Functions that several processes call together, in the order in which they stand, and what came of it."""

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path


class Together(dict[str, Callable[[Path], None]]):
    """The functions by name; it decorates them. Each is given a folder that all processes see."""

    def __call__(self, function: Callable[[Path], None]) -> Callable[[Path], None]:
        self[function.__name__] = function
        return function

    def call_all(self, folder: Path) -> None:
        """Call all of them in this process, and write down what each raised, or ""."""
        raised = dict.fromkeys(self, "")
        for name, function in self.items():
            try:
                function(folder)
            except BaseException:  # noqa: BLE001 - `pytest.raises` raises such a one
                raised[name] = traceback.format_exc()
        (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(raised))


def raised(folder: Path) -> list[dict[str, str]]:
    """What the two processes wrote down."""
    return [json.loads((folder / f"{process}.json").read_text()) for process in range(2)]
