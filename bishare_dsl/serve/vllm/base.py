"""Tell that an adapter was saved on another base than the served one.

    python -m bishare_dsl.serve.vllm.base MODEL

prints the fingerprint of a model as JSON. A server reads it in such a process, because loading a checkpoint
changes torch's default type for a while, for all threads. Nothing of vLLM is used.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

from pydantic import TypeAdapter

from bishare_dsl.diagnostics import BishareError, one_line, render
from bishare_dsl.folder.files import read_adapter
from bishare_dsl.folder.fingerprint import Fingerprint, base_changes, fingerprint
from bishare_dsl.models.load import load_model
from bishare_dsl.reading import parse_json
from bishare_dsl.serve.vllm.folder import Stamp, stamp_of

_log = logging.getLogger("vllm.bishare")  # What vLLM does not show, nobody sees.
_parser = TypeAdapter(Fingerprint)

THREAD = "bishare's reader of the served base"


class BaseCheck:
    """Compares the bases on which adapters were saved with the served one (BS620).

    The served checkpoint is read from disk, a layer at a time, when the first adapter comes that has a
    fingerprint of its base. No request waits for that: the log has the warning when it is known.

    Args:
        base: the folder or name of the served model.
    """

    def __init__(self, base: str):
        self._base = base
        self._served: Future[Fingerprint] | None = None
        self._compared: dict[str, Stamp] = {}

    def compare(self, name: str, folder: str | Path) -> None:
        """Log a warning if an adapter of bishare was saved on another base; once for each version.

        Args:
            name: the name of the adapter.
            folder: the folder, which was read without an error.
        """
        stamp = stamp_of(folder)
        if self._compared.get(str(folder)) == stamp:
            return
        self._compared[str(folder)] = stamp
        saved = read_adapter(folder).config.fingerprint
        if saved is None:
            return
        if self._served is None:
            self._served = Future()
            args = self._base, self._served
            Thread(target=_read, args=args, name=THREAD, daemon=True).start()
        self._served.add_done_callback(lambda served: _warn(name, saved, served))


def _read(base: str, served: Future[Fingerprint]) -> None:
    command = [sys.executable, "-m", "bishare_dsl.serve.vllm.base", base]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        served.set_exception(error)
        return
    try:
        numbers = _parser.validate_python(parse_json(run.stdout.rpartition("\n")[2].encode()))
    except ValueError:
        lines = run.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit code {run.returncode}"
        served.set_exception(ValueError(reason))
        return
    served.set_result(numbers)


def _warn(name: str, saved: Fingerprint, served: Future[Fingerprint]) -> None:
    error = served.exception()
    if error is not None:
        unknown = "whether it was saved on the served base is unknown"
        _log.warning("LoRA adapter '%s': %s: %s", name, unknown, one_line(error))
        return
    for problem in base_changes(saved, served.result()):
        _log.warning("LoRA adapter '%s': %s", name, render(problem))


_checks: dict[str, BaseCheck] = {}


def compare_base(name: str, folder: str | Path, base: str) -> None:
    """Do `BaseCheck.compare` for the served model ``base``, of which each process has one check."""
    if base not in _checks:
        _checks[base] = BaseCheck(base)
    _checks[base].compare(name, folder)


if __name__ == "__main__":
    try:
        served_model, _ = load_model(sys.argv[1], device={"": "disk"}, causal=False)
        sys.stdout.write(_parser.dump_json(fingerprint(served_model)).decode())
    except BishareError as problem:
        sys.exit(one_line(problem))
