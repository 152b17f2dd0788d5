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
from tests.support.tasks import tiny_tasks


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


ASK = "import sys, {}; print(sorted(m for m in sys.modules if m in ('peft', 'torch', 'bishare_dsl.peft')))"


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


@pytest.fixture
def stubs(site):
    """A PEFT and a bishare that are imported at once; the real ones are in the test of lm_eval."""
    for name, text in {"peft": "class LoraConfig: ...", "bishare_dsl": ""}.items():
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(text)
    (site / "bishare_dsl" / "peft.py").touch()


def test_peft_brings_bishare_and_nothing_else_does(site, stubs):
    def loaded(imports, before=""):
        return python(site, "-c", before + ASK.format(imports), cwd=site).stdout

    assert loaded("peft") == "['peft']\n"
    main(["on", str(site)])
    assert loaded("json") == "[]\n"
    assert loaded("peft") == "['bishare_dsl.peft', 'peft']\n"
    looked = "import sys; from importlib.util import find_spec; assert find_spec('peft'); "
    assert loaded("peft", looked) == "['bishare_dsl.peft', 'peft']\n"  # As transformers does.
    main(["off", str(site)])
    assert loaded("peft") == "['peft']\n"


def test_without_bishare_peft_is_imported_with_a_warning(site, stubs):
    main(["on", str(site)])
    (site / "bishare_dsl" / "__init__.py").write_text("raise ImportError('gone')")
    run = python(site, "-c", "import peft; print(peft.LoraConfig.__name__)", cwd=site)
    assert run.stdout == "LoraConfig\n"
    assert "bishare cannot be loaded with PEFT: gone" in run.stderr


def test_lm_eval_s_own_command_line(site, tmp_path):
    """Without the hook PEFT raises `KeyError: 'BISHARE'`."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    compile_spec("lora", model).bishare.save_pretrained(tmp_path / "adapter")
    tiny_tasks(tmp_path / "tasks", rows=4)
    command = ["-m", "lm_eval", "--model", "hf", "--device", "cpu", "--tasks", "tiny_choose"]
    command += ["--model_args", "pretrained=base,peft=adapter,dtype=float32"]
    command += ["--include_path", "tasks", "--output_path", "out", "--batch_size", "1"]
    main(["on", str(site)])
    on = python(site, *command, cwd=tmp_path)
    assert on.returncode == 0, on.stderr[-2000:]
    [found] = (tmp_path / "out").rglob("results_*.json")
    assert 0 <= json.loads(found.read_text())["results"]["tiny_choose"]["acc,none"] <= 1
