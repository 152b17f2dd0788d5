"""A package with a transform, installed by pip: in a fresh process, it is part of the language."""

import json
import subprocess
import sys

import pytest

from tests.plugins.conftest import CYCLIC

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "bishare-cyclic"
version = "0.3"

[project.entry-points."bishare.transforms"]
Cyclic = "bishare_cyclic:Cyclic"

[tool.hatch.build.targets.wheel]
include = ["bishare_cyclic.py"]
"""
SPEC = """spec cyclic

target q_proj, down_proj

share local  per module  rank 1
share inter  per model   rank 3  via Cyclic(period = 7)
"""
# Everything that needs torch, in one process: importing it takes longer than all of this.
PROGRAM = """
import sys, warnings
import torch
from bishare_dsl import compile_spec, load_adapter, parse_spec
from bishare_dsl.cli.main import main
from bishare_dsl.testing.checks import check_transform
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.transforms import Width, transform_kind

warnings.simplefilter("ignore")
spec = parse_spec(open("cyclic.share").read())
model = compile_spec(spec, tiny_model("llama"))
assert "bishare_cyclic" in sys.modules
for parameter in model.bishare.parameters():
    parameter.data.normal_(0, 0.2)
ids = torch.arange(8).view(1, 8)
want = model(ids).logits
model.bishare.save_pretrained("adapter")
assert torch.equal(load_adapter("adapter", tiny_model("llama"))(ids).logits, want)
tiny_model("llama").save_pretrained("base")
for command in (
    "compile cyclic.share --model base --out fresh",
    "inspect adapter",
    "convert adapter --model base --out peft",
    "merge adapter --model base --out merged",
):
    assert main(command.split()) == 0, command
merged = type(model).from_pretrained("merged")
torch.testing.assert_close(merged(ids).logits, want, rtol=1e-4, atol=1e-4)
cyclic = transform_kind("Cyclic")(period=5)
assert check_transform(cyclic, 3, [Width(12, 7), Width(4, 30)])
print("all of it works")
"""
REFERENCE = """
import torch
from bishare_dsl.testing.reference import reference

@reference("Cyclic")
def cyclic(term):
    def whole(scales, shared, width):
        return torch.cat([scale * shared for scale in scales[0]], dim=1)[:, :width]
    return whole(term["S_B"], term["B"], term.d_out).T, whole(term["S_A"], term["A"], term.d_in)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package in it, built and installed by pip without a network."""
    pytest.importorskip("hatchling")
    pytest.importorskip("pip")
    project = tmp_path_factory.mktemp("project")
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "bishare_cyclic.py").write_text(CYCLIC)
    target = tmp_path_factory.mktemp("site")
    command = "pip install --quiet --no-deps --no-build-isolation --no-index --target"
    subprocess.run([sys.executable, "-m", *command.split(), str(target), str(project)], check=True)
    return target


@pytest.fixture
def spec(here):
    """The folder that one is in has a spec."""
    (here / "cyclic.share").write_text(SPEC)
    return here


def python(site, program, *arguments):
    paths = [str(site), *(path for path in sys.path if path)]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{program}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# Its last word says whether the package was imported.
COMMAND = "from bishare_dsl.cli.main import main; code = main(sys.argv[1:]); "
COMMAND += "sys.exit(code or 10 * ('bishare_cyclic' in sys.modules))"


def test_check_fmt_and_plan_import_it_where_a_spec_uses_it(site, spec):
    checked = python(site, COMMAND, "check", "cyclic.share")
    assert checked.returncode == 10, checked.stdout
    assert python(site, COMMAND, "fmt", "--check", "cyclic.share").returncode in (0, 10)
    model = ("--model", "smollm2-135m")
    planned = python(site, COMMAND, "plan", "cyclic.share", *model, "--json")
    assert planned.returncode == 10
    rows = {row["name"]: row for row in json.loads(planned.stdout)["shares"]}
    assert rows["inter"]["transform"] == "Cyclic"
    assert rows["inter"]["options"] == {"period": 7}
    # The pooled factors, and for each of 30 layers the turns of q_proj (576, 576) and down_proj (1536, 576).
    assert rows["inter"]["trainable"] == 2 * 3 * 7 + 30 * (83 + 83 + 220 + 83)
    (spec / "plain.share").write_text(SPEC[: SPEC.index("share inter")])
    assert python(site, COMMAND, "plan", "plain.share", *model).returncode == 0


@pytest.mark.long
def test_compile_save_load_merge_export_and_the_checks(site, spec):
    run = python(site, f"{REFERENCE}\n{PROGRAM}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("all of it works\n")
    config = json.loads((spec / "adapter" / "adapter_config.json").read_text())
    assert config["bishare"]["packages"] == {"Cyclic": "bishare-cyclic 0.3"}
    assert (spec / "peft" / "adapter_model.safetensors").exists()
