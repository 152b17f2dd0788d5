"""``python -m bishare_dsl.autoload on``: let every program of an environment load bishare's adapters by PEFT.

A program that does not import bishare cannot load its adapters: PEFT raises ``KeyError: 'BISHARE'``. ``on``
writes two small files into the environment's site-packages. Python reads them when it starts; they wait until
something imports ``peft``, and then import `bishare_dsl.peft`. ``off`` removes them.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

HOOK = "_bishare_autoload.py"
PTH = "bishare_autoload.pth"

_HOOK = '''"""Written by `python -m bishare_dsl.autoload on`; the same with `off` removes it."""

import sys


class _Peft:
    """Imports bishare_dsl.peft as soon as peft was imported. It looks at names alone until then."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        # Programs also ask whether there is a peft, and import it later or never.
        if name != "peft":
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(cls)
        try:
            spec = find_spec(name)
        finally:
            sys.meta_path.insert(0, cls)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module):
            run(module)
            if cls in sys.meta_path:
                sys.meta_path.remove(cls)
            try:
                import bishare_dsl.peft
            except Exception as error:
                import warnings

                warnings.warn(f"bishare cannot be loaded with PEFT: {error}. Remove {__file__} to end this.")

        spec.loader.exec_module = run_and_register
        return spec


sys.meta_path.insert(0, _Peft)
'''


def main(argv: Sequence[str] | None = None) -> int:
    """Turn loading on or off, or print its status. Return the exit code: 1 if ``status`` finds it off."""
    parser = argparse.ArgumentParser(
        prog="python -m bishare_dsl.autoload",
        description="Let every program in this environment load bishare's adapters through PEFT.",
        epilog="After `on`, for example: lm_eval --model hf --model_args pretrained=MODEL,peft=ADAPTER ...",
    )
    parser.add_argument("action", choices=("on", "off", "status"))
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(sysconfig.get_path("purelib")),
        help="the site-packages to write to; by default those of this environment",
    )
    arguments = parser.parse_args(argv)
    files = {arguments.folder / HOOK: _HOOK, arguments.folder / PTH: f"import {Path(HOOK).stem}\n"}
    try:
        if arguments.action == "on":
            for path, text in files.items():
                path.write_text(text, encoding="utf-8")
        elif arguments.action == "off":
            for path in reversed(files):  # The .pth file first: it imports the other.
                path.unlink(missing_ok=True)
    except OSError as error:
        parser.exit(2, f"error: cannot write {arguments.folder}: {error.strerror}\n")
    on = all(path.is_file() for path in files)
    status = "on: programs that import peft can load bishare's adapters" if on else "off"
    sys.stdout.write(f"{status} ({arguments.folder})\n")
    return int(arguments.action == "status" and not on)


if __name__ == "__main__":
    sys.exit(main())
