"""`python -m bishare_dsl.autoload`: programs that do not import bishare load its adapters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bishare_dsl import compile_spec
from bishare_dsl.autoload import HOOK, PTH, main
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer


@pytest.fixture
def site(tmp_path):
    """A folder that Python takes for site-packages when it starts."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(folder)!r})\n")
    return folder


def python(site, *arguments, cwd=None):
    path = os.pathsep.join(filter(None, (str(site), str(Path.cwd()), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False)


ASK = "import sys, {}; print([m for m in ('peft', 'bishare_dsl.peft') if m in sys.modules])"


@pytest.fixture
def stand_ins(site):
    """Packages of the names that count, which take no time to import."""
    for name in ("peft", "bishare_dsl", "bishare_dsl/peft"):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("")
    return site


def test_on_off_and_status(site, capsys):
    assert main(["status", str(site)]) == 1
    assert main(["on", str(site)]) == 0
    assert main(["status", str(site)]) == 0
    assert "on: programs that import peft" in capsys.readouterr().out
    assert {HOOK, PTH} <= {path.name for path in site.iterdir()}
    assert main(["off", str(site)]) == 0
    assert [path.name for path in site.iterdir() if "bishare" in path.name] == []
    assert main(["off", str(site)]) == 0
    assert main(["status", str(site)]) == 1


def test_a_folder_that_cannot_be_written_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["on", str(tmp_path / "nowhere")])
    assert caught.value.code == 2
    assert "cannot write" in capsys.readouterr().err


def test_peft_brings_bishare_and_nothing_else_does(stand_ins):
    def imported(what, before=""):
        run = python(stand_ins, "-c", before + ASK.format(what), cwd=stand_ins)
        assert run.stderr == ""
        return run.stdout

    assert imported("peft") == "['peft']\n"
    main(["on", str(stand_ins)])
    assert imported("json") == "[]\n"
    both = "['peft', 'bishare_dsl.peft']\n"
    looked = "import sys; from importlib.util import find_spec; assert find_spec('peft'); "
    assert imported("peft", looked) == both  # As transformers does.
    assert imported("peft") == both
    main(["off", str(stand_ins)])
    assert imported("peft") == "['peft']\n"


def test_without_bishare_peft_is_imported_with_a_warning(stand_ins):
    main(["on", str(stand_ins)])
    (stand_ins / "bishare_dsl" / "__init__.py").write_text("raise ImportError('gone')")
    run = python(stand_ins, "-c", ASK.format("peft"), cwd=stand_ins)
    assert run.stdout == "['peft']\n"
    assert "bishare cannot be loaded with PEFT: gone" in run.stderr


TASK = {
    "task": "tiny_choose",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "tasks/rows.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_choice": "words",
    "doc_to_text": "{{text}}:",
    "doc_to_target": "right",
}


@pytest.mark.long
def test_lm_eval_s_own_command_line(site, tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    compile_spec("lora", model).bishare.save_pretrained(tmp_path / "adapter")
    (tmp_path / "tasks").mkdir()
    rows = [{"text": "ab", "words": ["cd", "e", "fgh"], "right": i % 3} for i in range(4)]
    (tmp_path / "tasks" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks" / "tiny_choose.yaml").write_text(json.dumps(TASK))  # JSON is YAML.
    command = ["-m", "lm_eval", "--model", "hf", "--device", "cpu", "--tasks", "tiny_choose"]
    command += ["--model_args", "pretrained=base,peft=adapter,dtype=float32"]
    command += ["--include_path", "tasks", "--output_path", "out", "--batch_size", "1"]
    main(["on", str(site)])
    on = python(site, *command, cwd=tmp_path)
    assert on.returncode == 0, on.stderr[-2000:]
    [found] = (tmp_path / "out").rglob("results_*.json")
    assert 0 <= json.loads(found.read_text())["results"]["tiny_choose"]["acc,none"] <= 1
