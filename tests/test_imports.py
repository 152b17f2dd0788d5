"""What must answer at once imports nothing slow: a fresh interpreter tells which modules a command has loaded."""

import json
import subprocess
import sys

import pytest

HEAVY = {"accelerate", "numpy", "peft", "safetensors", "torch", "transformers"}

RUN_AND_TELL = """
import json, sys
from bishare_dsl.cli.main import main

try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""


def modules_after(program: str, *arguments: str) -> tuple[int | None, set[str], str]:
    """The exit code, top-level modules loaded, and standard output of ``program``, run on its own."""
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    code, modules = json.loads(run.stderr.splitlines()[-1])
    return code, set(modules), run.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["check", "specs/lora.share"],
        ["fmt", "--check", "specs/lora.share"],
        ["plan", "specs/lora.share", "--model", "llama-7b"],
        ["plan", "specs/bishare_ke.share", "--model", "llama-7b", "--json"],
        ["plan", "lora", "bishare_ke", "--model", "llama-7b", "--set", "r=4,8"],
        ["plan", "lora", "--model", "llama-7b", "--budget", "3M", "--solve", "r"],
        ["show", "lora", "--model", "llama-7b"],
        ["show", "lora", "--model", "llama-7b", "--html", "/dev/stdout", "--svg", "/dev/null"],
        ["lsp"],
        ["diff", "lora", "bishare_ke", "--model", "llama-7b"],
    ],
    ids=" ".join,
)
def test_command_loads_nothing_heavy(arguments: list[str]) -> None:
    code, modules, output = modules_after(RUN_AND_TELL, *arguments)
    assert not code
    assert not modules & HEAVY
    assert output or arguments[0] in ("check", "fmt", "lsp")


def test_package_loads_nothing_but_itself() -> None:
    program = "import json, sys; import bishare_dsl; print(json.dumps([0, sorted(sys.modules)]), file=sys.stderr)"
    _, modules, _ = modules_after(program)
    ours = {name for name in modules if name.startswith("bishare_dsl")}
    assert ours == {"bishare_dsl", "bishare_dsl.lazy", "bishare_dsl.version"}


def test_exports_resolve_and_are_kept() -> None:
    import bishare_dsl

    for name in bishare_dsl.__all__:
        assert getattr(bishare_dsl, name) is not None
        assert name in vars(bishare_dsl)
        assert name in dir(bishare_dsl)


def test_unknown_export_is_an_attribute_error() -> None:
    import bishare_dsl

    with pytest.raises(AttributeError, match="no attribute 'compile'"):
        bishare_dsl.compile  # noqa: B018
