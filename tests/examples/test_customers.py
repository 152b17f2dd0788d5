"""Customers are added to one library by many processes, and nothing is lost."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bishare_dsl.folder.files import names_in, read_adapter
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import train
from tests.examples.conftest import EXAMPLES
from tests.support.served import serving

KILLED = """\
import os, signal, sys
from pathlib import Path

import ray
import ray_customers

add = ray_customers.add_customers


def killed_once(library, model, files):
    mark = Path(library).parent / "killed"
    if any(Path(file).stem == "c0" for file in files) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return add(library, model, files)


ray.init(num_cpus=2, include_dashboard=False)
ray_customers.add_customers = killed_once
ray_customers.main()
"""


def examples(path, limit, count, first):
    sizes = [(37 * i) % 97 for i in range(first, first + count)]
    rows = (
        {"prompt": f"{n}: ", "completion": "yes" if n > limit else "no", "options": ["yes", "no"]}
        for n in sizes
    )
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def library(tmp_path):
    data = {f"m{i}": examples(tmp_path / f"m{i}.jsonl", 30 * i + 10, 9, i) for i in range(3)}
    how = {"tokenizer": tiny_tokenizer(), "quiet": True, "max_steps": 2, "start": "zero"}
    params = {"r": 2, "first": -1}
    train("library_core", tiny_model("llama"), data, tmp_path / "run", params=params, **how)
    return tmp_path / "run" / "library"


@pytest.fixture
def customers(tmp_path):
    (tmp_path / "customers").mkdir()
    return [examples(tmp_path / "customers" / f"c{i}.jsonl", 2 * i, 4, i) for i in range(40)]


def whole(library, count):
    names = names_in(library)
    assert len(names) == count
    for name in names:
        read_adapter(f"{library}#{name}").tensors()


def test_customers_that_the_library_has_are_left_out(library, checkpoint, customers):
    from ray_customers import add_customers

    assert add_customers(str(library), str(checkpoint), customers[:3]) == ["c0", "c1", "c2"]
    before = (library / "adapter_config.json").read_bytes()
    assert add_customers(str(library), str(checkpoint), customers[1:3]) == []
    assert (library / "adapter_config.json").read_bytes() == before
    whole(library, 6)


@pytest.mark.long
def test_two_processes_add_forty_customers_to_one_library(library, checkpoint, customers):
    script = str(EXAMPLES / "ray_customers.py")
    parts = (customers[::2], customers[1::2])
    command = [sys.executable, script, "--here", str(library), str(checkpoint)]
    running = [
        subprocess.Popen([*command, *part], stdout=subprocess.PIPE, text=True) for part in parts
    ]
    for process in running:
        assert "20 customers added" in process.communicate(timeout=300)[0]
    whole(library, 43)


@pytest.mark.long
def test_ray_does_the_customers_of_a_killed_worker_again(
    library, checkpoint, customers, tmp_path, monkeypatch
):
    pytest.importorskip("ray", reason="`make test-examples` installs it")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", f"{EXAMPLES}:{EXAMPLES.parent}")
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(library), str(checkpoint), *customers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=True)
    assert (library.parent / "killed").exists()
    assert "40 customers added" in done.stdout
    whole(library, 43)


def test_a_new_customer_is_in_the_library_when_the_server_is_asked(
    library, checkpoint, customers, monkeypatch, capsys
):
    import new_customer

    asked = []

    def answer(path, body):
        asked.append((path, body["model"], body["model"] in names_in(library)))
        return 200, {"choices": [{"text": " yes"}]}

    with serving(SimpleNamespace(answer=answer)) as url:
        words = [str(library), str(checkpoint), customers[7], "98:", url.removesuffix("/v1")]
        monkeypatch.setattr(sys, "argv", ["new_customer.py", *words])
        new_customer.main()
    assert asked == [("/v1/completions", "c7", True)]
    assert capsys.readouterr().out.startswith("98: yes\n")
