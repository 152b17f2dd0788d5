"""The readers of `examples`, which know neither bishare nor torch, read all of `conformance`, and that is what we make."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bishare_dsl import compile_spec
from bishare_dsl.convert.effective import delta
from bishare_dsl.folder.config import AdapterConfig
from bishare_dsl.folder.files import read_adapter
from bishare_dsl.language import read_file
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.plan.bits import BITS
from bishare_dsl.resources import find_spec
from bishare_dsl.spec import MAGNITUDE
from bishare_dsl.transforms import package_of, transform_kind, transform_names
from tests.methods.test_every_method import TINY
from tests.support.checks import randomize
from tests.support.families import tiny_model as family_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "conformance"
SCHEMA = json.loads((ROOT / "docs" / "format.schema.json").read_text("utf-8"))
# Other tests register their own.
OURS = {n for n in transform_names() if package_of(transform_kind(n)) == "bishare_dsl"}
FEATURES = (*BITS, "base", "drawn", "experts", "full", "library", "tied")
pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")


def imported(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = imported(FOLDER / "make.py")
TO_LORA = imported(ROOT / "examples" / "to_lora.py")
sys.modules["to_lora"] = TO_LORA
READER = imported(ROOT / "examples" / "reader.py")
EXPECTED = sorted(FOLDER.glob("**/expected*.safetensors"))


def named(path):
    return f"{path.parent.relative_to(FOLDER)}/{path.stem}"


def near(found, expected):
    wanted = expected.double().numpy()
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def weights_of(path):
    file = path.with_name(MAKE.WEIGHTS)
    return {k: v.double().numpy() for k, v in load_file(file).items()} if file.is_file() else None


def test_the_parameters_of_gpt_oss_by_the_page():
    """Transposed, the columns of gate and up in turn."""
    folder = FOLDER / "gpt_oss"
    updates, _ = READER.read(folder)
    wanted = load_file(folder / MAKE.PARAMETERS)
    assert wanted
    for name, value in wanted.items():
        owner, _, parameter = name.rpartition(".")
        found = np.zeros(value.shape)
        for expert in range(len(found)):
            if parameter == "down_proj":
                found[expert] = updates[f"{owner}.{expert}.down_proj"].T
            else:
                found[expert][:, 0::2] = updates[f"{owner}.{expert}.gate_proj"].T
                found[expert][:, 1::2] = updates[f"{owner}.{expert}.up_proj"].T
        near(found, value)


def test_a_magnitude_is_not_read_without_the_weights_that_it_scales():
    folder = FOLDER / "magnitudes"
    says = "the weight of model.layers.0.self_attn.q_proj, which `magnitude` scales"
    with pytest.raises(SystemExit, match=f"does not know: {says}"):
        READER.read(folder)
    weights = weights_of(folder / "expected.safetensors")
    assert weights is not None
    with pytest.raises(SystemExit, match="such a magnitude at"):
        READER.read(folder, None, {k: v[:, 1:] for k, v in weights.items()})
    if shutil.which("node"):
        command = ["node", str(ROOT / "examples" / "reader.mjs"), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert f"does not know: {says}" in done.stderr


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("family", "target"), [("gpt2", "c_fc"), ("qwen2", "q_proj, down_proj")])
def test_magnitudes_change_the_weights_as_they_change_the_model(family, target, plain, tmp_path):
    """Added to the weights, with biases as they are, the updates give what bishare gives.

    Row 0 of each weight is zero, the terms cancel row 1, and all but cancel row 2.
    """
    text = f"spec m\ntarget {target}\nshare s per module rank 2\nmagnitude per kind{' plain' * plain}\n"
    base = family_of(family).eval()
    model = compile_spec(text, family_of(family)).eval()
    tensors = randomize(model, 1)
    maps, own = linear_maps(base), linear_maps(model)
    with torch.no_grad():
        for site in model.bishare.plan.sites:
            for linear in (base, model):
                bias = linear.get_submodule(site.path).bias
                if bias is not None:
                    bias.normal_(generator=torch.Generator().manual_seed(2))
            maps[site.path].matrix()[0] = own[site.path].matrix()[0] = 0
            term = model.bishare.plan.terms_of[site.path][0]
            a, b = (tensors[term.tensors[role]] for role in "AB")
            a.copy_(own[site.path].matrix()[1:3])
            b[:, :3] = 0
            b[0, 1], b[1, 2] = -1 / term.scale, -(1 - 1e-4) / term.scale
    model.bishare.save_pretrained(tmp_path)
    weights = {
        p.path: maps[p.path].matrix().double().detach().numpy() for p in model.bishare.plan.sites
    }
    updates, _ = READER.read(tmp_path, None, weights)
    if shutil.which("node"):
        for path, update in read_by_node([tmp_path], weights)[0].items():
            near(np.array(update), torch.from_numpy(updates[path]))
    with torch.no_grad():
        for path, update in updates.items():
            maps[path].matrix().add_(torch.from_numpy(update))
        ids = torch.arange(12).view(2, 6)
        # Rounding in a row that the terms cancel is made up to 1000 times as large.
        torch.testing.assert_close(base(ids).logits, model(ids).logits, atol=1e-3, rtol=1e-3)


HOW = [
    {"dtype": dtype, "frozen": frozen}
    for dtype in (None, "bfloat16")
    for frozen in ("seed", "tensors")
] + [{"dtype": "int8"}, {"dtype": "int4"}]


@pytest.mark.long
@pytest.mark.parametrize("name", TINY)
def test_readers_and_bishare_agree_on_fresh_adapters(name, tmp_path):
    """More than 200 adapters: each shipped spec, stored in each way."""
    assert len(TINY) * len(HOW) > 200
    params = TINY[name] if name != "bishare_gt" else {"size": 64, "gate_rank": 70}
    spec = read_file(find_spec(name))[0].with_params(params)
    model = compile_spec(spec, family_of("llama", num_hidden_layers=4), seed=5)
    randomize(model, 6, frozen=False)
    folders = [tmp_path / str(number) for number in range(len(HOW))]
    for folder, how in zip(folders, HOW, strict=True):
        model.bishare.save_pretrained(folder, **how)
    plan = model.bishare.plan
    if not all(term.linear or term.is_magnitude for term in plan.terms):
        for folder in folders:
            with pytest.raises(SystemExit, match="an update that depends on the input"):
                TO_LORA.to_lora(folder, tmp_path / "lora")
        return
    maps = linear_maps(model.bishare.unload())
    sites = [site for site in plan.sites if plan.terms_of[site.path]]
    weights = {site.path: maps[site.path].matrix().double().numpy() for site in sites}
    by_numpy = [READER.read(folder, None, weights)[0] for folder in folders]
    by_node = read_by_node(folders, weights) if shutil.which("node") else by_numpy
    for folder, updates, node in zip(folders, by_numpy, by_node, strict=True):
        assert updates.keys() == node.keys() == weights.keys()
        values = read_adapter(folder).tensors()
        for site in sites:
            wanted = delta(plan, values, site, maps[site.path].matrix())
            near(updates[site.path], wanted)
            near(np.array(node[site.path]), wanted)


def read_by_node(folders, weights):
    """Return the updates of adapters by the reader in JavaScript, given the base's weights."""
    for folder in folders:
        (folder / "w.json").write_text(
            json.dumps({path: w.tolist() for path, w in weights.items()})
        )
    code = f"""
    import {{ readFileSync }} from 'node:fs';
    import {{ read }} from '{ROOT}/examples/reader.mjs';
    const found = [];
    for (const folder of process.argv.slice(1)) {{
      const [config, file, w] = ['adapter_config.json', 'adapter_model.safetensors', 'w.json'].map((name) =>
        readFileSync(`${{folder}}/${{name}}`));
      found.push((await read(config.toString(), [new Uint8Array(file)], JSON.parse(w.toString()))).updates);
    }}
    console.log(JSON.stringify(found));
    """
    command = ["node", "--input-type=module", "-e", code, *map(str, folders)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_javascript_alone_reads_them():
    command = ["node", str(Path(__file__).with_name("read.mjs")), str(FOLDER)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(row["folder"], row["file"]) for row in rows} == {
        (path.parent.name, path.name) for path in EXPECTED
    }
    for row in rows:
        assert row["worst"] is not None, row
        assert row["worst"] <= 1e-5, row
        assert not row["left"], row


REFUSED = {
    "router": "as a plain LoRA",
    "head_and_full": "as a plain LoRA",
    "base": "does not know: base",
    **dict.fromkeys(
        ("magnitudes", "shared_magnitude", "plain_magnitude"),
        "scales the base's weights too: merge it with `bishare merge FOLDER --model BASE --out NEW`",
    ),
}


@pytest.mark.parametrize("path", EXPECTED, ids=named)
def test_numpy_alone_reads_it_and_makes_a_plain_lora_of_it(path, tmp_path):
    """The pairs give each dW; what is no plain LoRA is refused, and named."""
    name, expected = path.stem.partition("-")[2] or None, load_file(path)
    updates, full = READER.read(path.parent, name, weights_of(path))
    places = {place.removesuffix(".x").removesuffix(".y") for place in expected}
    assert places == {*updates, *full}
    for place, value in (updates | full).items():
        if callable(value):
            rows = expected[f"{place}.x"].double().numpy()
            near(np.stack([value(x) @ x for x in rows]), expected[f"{place}.y"])
        else:
            near(value, expected[place])
    if path.parent.name in REFUSED:
        with pytest.raises(SystemExit, match=REFUSED[path.parent.name]):
            TO_LORA.to_lora(path.parent, tmp_path / "lora", name)
        return
    pairs = TO_LORA.to_lora(path.parent, tmp_path / "lora", name)
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert pairs.keys() == expected.keys()
    assert len(stored) == 2 * len(expected)
    for module, value in expected.items():
        a, b = (stored[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        near((b.double() @ a.double()).numpy(), value)


def test_the_tables_of_the_readers_and_the_schema_are_those_of_the_transforms():
    assert {*TO_LORA.KNOWN} == OURS | {MAGNITUDE}
    assert {*SCHEMA["$defs"]["sharing"]["properties"]["needs"]["items"]["enum"]} == OURS | {
        *FEATURES,
        MAGNITUDE,
    }
    for name, (roles, options) in TO_LORA.KNOWN.items():
        kind = transform_kind(name)
        assert {*roles.split()} == {*kind.pooled, *kind.owned}
        assert {*options.split()} == {f.alias or n for n, f in kind.model_fields.items()}
        closed = SCHEMA["$defs"][name]["properties"]
        assert closed["options"]["properties"].keys() == {*options.split()}
        assert {*closed["options"]["required"]} == {*options.split()}
        assert {*closed["roles"]["items"]["enum"]} == {
            *roles.split(),
            *(() if name == MAGNITUDE else TO_LORA.GAINS),
        }


def test_neither_imports_torch_or_bishare():
    code = "import sys; sys.path.insert(0, 'examples'); import reader, to_lora; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"torch", "bishare_dsl", "safetensors"} & {*done.stdout.split()}
    text = (ROOT / "examples" / "reader.mjs").read_text("utf-8")
    assert [line for line in text.splitlines() if "import" in line and "from '" in line] == []


@pytest.mark.parametrize("name", MAKE.ADAPTERS)
def test_it_is_what_the_script_makes_and_keeps_to_the_schema(name, tmp_path):
    MAKE.make(tmp_path, name)
    files = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {p.relative_to(FOLDER) for p in (FOLDER / name).rglob("*") if p.is_file()}
    for file in files:
        if file.suffix == ".safetensors":
            here, there = load_file(tmp_path / file), load_file(FOLDER / file)
            assert here.keys() == there.keys()
            for key, value in here.items():
                torch.testing.assert_close(value, there[key])
    places = (place / name / "adapter_config.json" for place in (tmp_path, FOLDER))
    here, there = (json.loads(place.read_text("utf-8")) for place in places)
    one, other = (AdapterConfig.of(one).model_dump(exclude={"versions"}) for one in (here, there))
    assert one == other
    jsonschema.validate(there, SCHEMA)


def test_every_transform_is_in_one():
    used = {
        term["transform"]
        for path in FOLDER.glob("*/adapter_config.json")
        for term in json.loads(path.read_text())["bishare"]["sharing"]["terms"]
    }
    assert used == OURS | {MAGNITUDE}


def test_the_page_has_all_of_them_and_its_example_keeps_to_the_schema():
    page = (ROOT / "docs" / "format.md").read_text("utf-8")
    assert not [name for name in OURS if f"- **{name}**" not in page]
    example = page.partition("```json\n")[2].partition("```")[0]
    jsonschema.validate(json.loads(example), SCHEMA)
