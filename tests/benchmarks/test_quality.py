"""The note of benchmarks/quality has the tables of its results; the registered runs at equal bytes are compared as it says."""

import copy
import re
from pathlib import Path

import pytest
import torch
from sweep import equal, training
from sweep.results import Job, Results
from sweep.tables import tables
from sweep.tasks import DECIDING

import bishare_dsl
from bishare_dsl import compile_spec
from tests.support.families import tiny_model

BENCHMARKS = Path(bishare_dsl.__file__).parents[1] / "benchmarks"


def measured(right):
    """Return what a row holds of test examples that are right or not."""
    return {
        "test_accuracy": sum(right) / len(right),
        "test_right": training.bitmask(right),
        "test_rows": len(right),
    }


def row(job, right, **more):
    return {
        "task": job.task,
        "method": job.method,
        "seed": job.seed,
        "parameters": 9,
        "bytes": 40,
        **measured(right),
        **more,
    }


@pytest.mark.parametrize(("mark", "made"), [("tables", tables), ("equal", equal.equal_tables)])
def test_the_note_has_the_tables_of_the_results(mark, made):
    note = (BENCHMARKS / "notes" / "2026-11-27-quality.md").read_text("utf-8")
    [text] = re.findall(f"<!-- {mark} -->\n(.*)\n<!-- /{mark} -->", note, re.DOTALL)
    assert text == made(Results(BENCHMARKS / "quality" / "results.jsonl"))


def test_the_registered_runs_give_lora_eight_seeds_and_each_method_the_seeds_of_fewer_bits():
    jobs = [*equal.registered()]
    assert len({*jobs}) == len(jobs) > 40
    stored = Results(BENCHMARKS / "quality" / "results.jsonl")
    for task in DECIDING:
        small = {*stored, *jobs}
        assert all(Job(task, "lora_2", 2e-3, seed) in small for seed in range(8))
        for name in equal.COMPARED:
            assert all(equal.job_of(task, name, seed) in jobs for seed in equal.STORED)
    # A repetition does not take the place of the first result.
    assert all(
        (job.size == "again") == (job.method in ("lora", "ke_1_r"))
        for job in jobs
        if not job.params
    )


def test_methods_and_fewer_bits_are_compared_with_their_rivals():
    results = Results(Path("none.jsonl"))
    for seed in range(4):
        for name, right in (("lora_2", [1, 1, 0, 0] * 25), ("ke_1_r", [1, 1, 1, 0] * 25)):
            rate = equal.KE_RATES["languages"] if name == "ke_1_r" else equal.LORA_RATE
            first, job = Job("languages", name, rate, seed), equal.job_of("languages", name, seed)
            results[first] = row(first, right)
            if seed in equal.STORED:
                less = {
                    form: measured([1, 0, 0, 0] * 25) | {"bytes": 20} for form in training.FORMS
                }
                results[job] = row(job, right, bits=less)
    text = equal.equal_tables(results)
    assert "| languages | LoRA r=2 | 9 | 50.0 ± 0.0 (4) |  |  |  |" in text
    assert re.search(r"\| languages \| KE `1_r` .* \| 75.0 ± 0.0 \(4\) \| 4 \| \+25.0 \| \+", text)
    assert re.search(r"\| LoRA r=2 \| languages \| 1 \| 50.0 \| -25.0 \(-\d", text)
    assert re.search(
        r"\| 4 bits \| KE `1_r` .* \| int4 \| 20 \| languages 1 \| 25.0 \| \+0.0 \(", text
    )
    assert "KE `1_r` {2,4,16} size 64 seed 3 +0.0" in text


def test_a_stored_adapter_is_tested_as_it_is_loaded(monkeypatch):
    torch.manual_seed(0)
    base = tiny_model("llama", hidden_size=64, intermediate_size=128)
    monkeypatch.setattr(training, "load_base", lambda _: copy.deepcopy(base))
    model = compile_spec("lora", copy.deepcopy(base), seed=0)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.normal_()
    draw = torch.Generator().manual_seed(1)
    test = [
        training.Example(torch.randint(32, (4,), generator=draw).tolist(), [[3], [7]], 0)
        for _ in range(40)
    ]
    whole = training.evaluate(model, test)
    found = {form: training._stored(model, form, Path(), test) for form in training.FORMS}
    assert found["bfloat16"]["bytes"] > found["int8"]["bytes"] > found["int4"]["bytes"]
    distance = {form: abs(of["test_loss"] - whole[1]) for form, of in found.items()}
    assert 0 < distance["bfloat16"] < distance["int4"]
    assert distance["int8"] < distance["int4"]
    # The adapter that was trained stays as it is.
    assert training.evaluate(model, test) == whole
