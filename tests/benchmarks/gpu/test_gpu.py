"""The scripts for a GPU run at a tiny size on a CPU, so that an hour of one is not spent on their mistakes."""

import importlib
import json
from pathlib import Path

import pytest

import bishare_dsl

pytestmark = pytest.mark.long

BENCHMARKS = Path(bishare_dsl.__file__).parents[1] / "benchmarks"
TINY = "--size tiny --device cpu --rounds 2 --tokens 32 --batch 3 --specs lora"


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """Run a part with flags, and read the rows that it has written."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr("harness.result.RESULTS", tmp_path)

    def run(part, *flags):
        importlib.import_module(f"gpu.{part}").main([*TINY.split(), *flags])
        [file] = tmp_path.iterdir()
        found = json.loads(file.read_text())["rows"]
        file.unlink()
        return found

    return run


@pytest.mark.parametrize("precision", ["bfloat16", "4bit"])
def test_steps_and_their_memory_and_decoding(rows, precision):
    found = {row["step"]: row for row in rows("step", "--precision", precision)}
    assert list(found) == ["base", "PEFT LoRA", "lora", "PEFT LoRA again"]
    assert found["PEFT LoRA"]["x PEFT"] == found["base"]["x base"] == 1
    assert all(row["tokens a second"] > 0 and row["peak, x PEFT"] > 0 for row in found.values())
    decoded = rows("decode", "--precision", precision)
    assert [row["decoding"] for row in decoded] == list(found)
    assert all(row["ms a token"] > 0 for row in decoded)


def test_mixed_batches_and_adapters_in_one_pass(rows):
    found = [row["decoding"] for row in rows("mixed_batch", "--precision", "float32")]
    assert "bishare_ke, adapter_names" in found
    trained = {row["what"]: row["ratio"] for row in rows("many", "--precision", "float32")}
    assert "3 adapters in one pass / one after another" in trained
    assert all(ratio > 0 for ratio in trained.values())


def test_all_parts_are_run_and_a_failure_is_told(monkeypatch, capfd):
    monkeypatch.syspath_prepend(BENCHMARKS)
    run = importlib.import_module("gpu.run")
    assert run.main(["--dry-run", "--size", "tiny"]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert len(shown) == len(run.PARTS)
    assert all(line.startswith("== -m gpu.") and "--size tiny" in line for line in shown)
    monkeypatch.setattr(run, "PARTS", (("run", ("--minutes", "few"), 60), ("run", ("-h",), 60)))
    assert run.main([]) == 1
    assert "usage:" in capfd.readouterr().out  # of the second, in spite of the first
    assert run.main(["--minutes", "0"]) == 1
    assert "no time is left" in capfd.readouterr().out
