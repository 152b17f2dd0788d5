"""Many adapters: listed, compared, imported and counted, of a tiny model."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from bishare_dsl.compiler import make_plan
from bishare_dsl.convert.effective import delta
from bishare_dsl.convert.export import export_adapter
from bishare_dsl.folder.config import record_digest
from bishare_dsl.folder.files import read_adapter, save_adapter, save_library
from bishare_dsl.models import architecture_of
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.load import load_model, meta_model

HEAD = "spec small\ntarget q_proj, down_proj\nshare a  "
LORA = HEAD + "per module  rank 2\nshare b  per kind  rank 3\n"
LIBRARY = HEAD.replace("small", "family") + "A per in  B per adapter, module  rank 2\n"


def tensors_of(plan, seed):
    random = torch.Generator().manual_seed(seed)
    return {t.name: torch.randn(t.shape, generator=random) / 3 for t in plan.tensors}


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    """A folder of adapters: two of one spec, a plain LoRA of PEFT, and a library of two."""
    folder = tmp_path_factory.mktemp("many")
    base = architecture_of(str(checkpoint))
    plan = make_plan(LORA, base)
    how = {"seed": 0, "origin": {"base_revision": "0123456789abcdef"}}
    for name, seed in (("acme", 0), ("globex", 1)):
        save_adapter(folder / name, plan.plan, tensors_of(plan.plan, seed), plan.text(), **how)
    lora = make_plan("lora", base, {"r": 3})
    values, model = tensors_of(lora.plan, 2), meta_model(str(checkpoint))
    export_adapter(folder / "initech", lora.plan, values, model)
    family = make_plan(LIBRARY, base)
    each = {n: tensors_of(family.plan, seed) for n, seed in (("one", 3), ("two", 4))}
    save_library(folder / "lib", family.plan, each, family.text(), seed=0)
    return folder


@pytest.fixture
def adapters(made, here):
    """A copy of it, in the folder that one is in."""
    shutil.copytree(made, here / "adapters")
    return here / "adapters"


def listed(run):
    return {row["name"]: row for row in json.loads(run.out)["adapters"]}


def test_a_folder_is_a_table_whose_rows_and_totals_are_true(bishare, adapters):
    run = bishare("inspect", "adapters")
    assert (run.code, run.err) == (0, "")
    head, _, *rows = run.out.splitlines()
    assert head.split() == ["name", "method", "base", "rank", "parameters", "bytes", "date"]
    names = [" ".join(row.split()[:2]) for row in rows[:5]]
    assert names == ["acme small", "globex small", "initech lora", "one family", "two family"]
    assert "@0123456" in rows[0]
    assert "5 adapters, " in run.out
    assert "shared in adapters/lib: " in run.out
    found = listed(bishare("inspect", "adapters", "--json"))
    stored = read_adapter(adapters / "acme")
    acme = found["acme"]
    assert acme["parameters"] == stored.plan.trainable
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert acme["bytes"] == sum((adapters / "acme" / name).stat().st_size for name in names)
    assert acme["rank"] == [5, 5]
    assert acme["date"] == (adapters / "acme" / names[1]).stat().st_mtime
    assert found["initech"]["rank"] == [3, 3]
    family = read_adapter(f"{adapters}/lib#two").plan
    own = sum(t.size for t in family.tensors if t.name not in family.common)
    assert found["two"]["parameters"] == own
    assert found["two"]["place"] == "adapters/lib#two"
    one = json.loads(bishare("inspect", "adapters/acme", "--json").out)
    assert one["whereabouts"]["stored"] == stored.plan.trainable
    data = json.loads(bishare("inspect", "adapters/lib", "--json").out)
    files = [*(adapters / "lib").rglob("*.safetensors"), adapters / "lib" / "adapter_config.json"]
    assert data["totals"]["bytes"] == sum(path.stat().st_size for path in files)
    [shared] = data["shared"]
    assert shared["adapters"] == 2
    assert data["totals"]["parameters"] == shared["parameters"] + sum(
        row["parameters"] for row in data["adapters"]
    )
    assert data["totals"]["specs"] == 1


def test_what_cannot_be_read_is_a_row_and_the_others_are_listed(bishare, adapters):
    (adapters / "acme" / "adapter_model.safetensors").write_bytes(b"\x09\0\0\0\0\0\0\0nonsense!")
    (adapters / "globex" / "adapter_model.safetensors").unlink()
    (adapters / "initech" / "adapter_config.json").write_text("[]")
    run = bishare("inspect", "adapters")
    assert run.code == 1
    assert run.out.count("cannot be read") == 3 + 1
    assert "adapters/globex: `adapter_model.safetensors` is missing" in run.out
    assert "2 adapters, " in run.out


@pytest.mark.parametrize("entries", [None, [], 7, "x", {"s.A": 1}, {"s.A": {"way": "int4"}}])
def test_a_folder_whose_entries_are_wrong_hides_no_other(bishare, adapters, entries):
    file = adapters / "acme" / "adapter_config.json"
    config = json.loads(file.read_text())
    record = config["bishare"] | {"entries": entries}
    record["digest"] = record_digest(config["spec"], config["seed"], record)
    file.write_text(json.dumps(config | {"bishare": record}))
    run = bishare("inspect", "adapters", "--json")
    assert run.code == 1
    errors = {name: bool(row["error"]) for name, row in listed(run).items()}
    assert errors == {"acme": True, **dict.fromkeys(("globex", "initech", "one", "two"), False)}


def test_links_to_themselves_are_no_adapters_and_names_of_strangers_are_escaped(bishare, adapters):
    (adapters / "loop").symlink_to(adapters / "loop")
    (adapters / "up").symlink_to(adapters, target_is_directory=True)
    (adapters / "again").symlink_to(adapters / "acme", target_is_directory=True)
    run = bishare("inspect", "adapters", "--json")
    assert run.code == 0
    assert len(json.loads(run.out)["adapters"]) == 5
    config = json.loads((adapters / "initech" / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "a\x1b[31mb", "peft_type": {"x": 1}, "r": "many"}
    (adapters / "initech" / "adapter_config.json").write_text(json.dumps(config))
    run = bishare("inspect", "adapters")
    assert run.code == 0
    assert "\x1b" not in run.out


def test_a_thousand_folders_read_heads_alone(bishare, adapters, monkeypatch):
    """No plan is built and no tensor is read, however many there are."""
    for number in range(40):
        shutil.copytree(adapters / "acme", adapters / f"copy{number}")

    def refuse(*_):
        raise AssertionError("an adapter was read")

    monkeypatch.setattr("bishare_dsl.folder.files.read_adapter", refuse)
    monkeypatch.setattr("bishare_dsl.folder.contents.plan_of_text", refuse)
    assert len(listed(bishare("inspect", "adapters", "--json"))) == 45


def test_two_adapters_are_compared_by_their_factors(bishare, adapters):
    data = json.loads(bishare("diff", "adapters/acme", "adapters/globex", "--json").out)
    assert data["same_spec"]
    one, two = (read_adapter(adapters / name) for name in ("acme", "globex"))
    for kind in ("q_proj", "down_proj", None):
        sites = [site for site in one.plan.sites if kind in (None, site.kind)]
        a, b = (
            torch.cat([delta(s.plan, s.tensors(), site).flatten() for site in sites]).double()
            for s in (one, two)
        )
        found = data["all"] if kind is None else data["kinds"][kind]
        assert found["relative_difference"] == pytest.approx(float((a - b).norm() / a.norm()))
        cosine = float((a * b).sum() / a.norm() / b.norm())
        assert found["cosine"] == pytest.approx(cosine, abs=1e-6)
    out = bishare("diff", "adapters/acme", "adapters/globex").out
    assert "the same spec, small" in out
    same = bishare("diff", "adapters/acme", "adapters/acme").out
    assert "0.00%" in same
    assert "the updates are equal" in same


def test_adapters_with_a_magnitude_are_compared_by_their_weights(bishare, here, checkpoint):
    """`W' - W` of each, beside one that has none; nothing else differs from a comparison by factors."""
    base, updates = architecture_of(str(checkpoint)), []
    maps = linear_maps(load_model(str(checkpoint), causal=False)[0])
    texts = {"m": "magnitude per module\n", "n": "magnitude per kind plain\n", "l": ""}
    for number, (name, more) in enumerate(texts.items()):
        made = make_plan(LORA + more, base)
        plan, tensors = made.plan, tensors_of(made.plan, number)
        save_adapter(here / name, plan, tensors, made.text(), seed=0)
        dense = (delta(plan, tensors, site, maps[site.path].matrix()) for site in plan.sites)
        updates.append(torch.cat([update.flatten() for update in dense]).double())
    for first, second in ((0, 1), (1, 2), (2, 0), (0, 0)):
        names = [*texts][first], [*texts][second]
        found = json.loads(bishare("diff", *names, "--model", checkpoint, "--json").out)["all"]
        a, b = updates[first], updates[second]
        assert found["norm_before"] == pytest.approx(float(a.norm()))
        difference = float((a - b).norm() / a.norm())
        assert found["relative_difference"] == pytest.approx(difference, abs=1e-6)
        assert found["cosine"] == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-6)


@pytest.fixture
def customers(here, checkpoint):
    """Five LoRAs of PEFT, one of which is damaged."""
    base = architecture_of(str(checkpoint))
    for number in range(5):
        made = make_plan("lora", base, {"r": 1 + number})
        tensors = tensors_of(made.plan, number)
        place = here / f"customers/c-{number}"
        export_adapter(place, made.plan, tensors, meta_model(str(checkpoint)))
    (here / "customers/c-3/adapter_model.safetensors").write_bytes(b"no")
    return sorted((here / "customers").iterdir())


def test_many_loras_are_imported_and_each_is_checked(bishare, customers, checkpoint, here):
    words = ("--for", "bishare", "--out", "adapters", "--model", checkpoint)
    run = bishare("convert", *customers, *words)
    assert (run.code, "BS608" in run.err) == (1, True)
    assert "4 of 5 converted into adapters" in run.out
    assert sorted(p.name for p in (here / "adapters").iterdir()) == ["c-0", "c-1", "c-2", "c-4"]
    for name in ("c-0", "c-4"):
        stored = read_adapter(f"adapters/{name}")
        assert stored.plan.spec == name.replace("-", "_")
        tensors, raw = stored.tensors(), load_file(f"customers/{name}/adapter_model.safetensors")
        scale = json.loads((here / f"customers/{name}/adapter_config.json").read_text())
        for site in stored.plan.sites:
            a, b = (raw[f"base_model.model.{site.path}.lora_{x}.weight"] for x in "AB")
            wanted = scale["lora_alpha"] / scale["r"] * (b @ a)
            assert torch.allclose(delta(stored.plan, tensors, site), wanted, atol=1e-6)
    shutil.rmtree(customers[3])
    words = ("convert", "--for", "bishare", "customers", "--out", "new", "-m", checkpoint)
    data = json.loads(bishare(*words, "--json").out)
    assert data["converted"] == 4
    assert {row["name"]: row for row in data["adapters"]}["c-1"]["modules"] == 10
    # As if the command had been interrupted: those that are whole are no error.
    shutil.rmtree(here / "new" / "c-0")
    run = bishare(*words)
    assert (run.code, run.err.count("BS618")) == (0, 0)
    assert "4 of 4 converted" in run.out
    read_adapter("new/c-0")
    shutil.copytree("new/c-2", "new/c-1", dirs_exist_ok=True)
    run = bishare(*words)
    assert (run.code, run.err.count("error[BS618]")) == (2, 1)
    assert read_adapter("new/c-1").plan == read_adapter("new/c-2").plan
    assert bishare(*words, "--force").code == 0
    assert read_adapter("new/c-1").plan != read_adapter("new/c-2").plan


def test_an_import_that_is_not_the_lora_is_an_error(
    bishare, customers, checkpoint, here, monkeypatch
):
    real = save_adapter

    def spoil(folder, plan, tensors, text, **how):
        first = next(iter(tensors))
        return real(folder, plan, tensors | {first: tensors[first] + 1e-3}, text, **how)

    monkeypatch.setattr("bishare_dsl.folder.files.save_adapter", spoil)
    words = ("--for", "bishare", "--out", "adapters", "--model", checkpoint)
    run = bishare("convert", *customers[:2], *words)
    assert (run.code, "error[BS607]" in run.err) == (1, True)
    assert "differ from those of" in run.err
    assert "0 of 2 converted" in run.out
    assert not list(here.glob("adapters/*"))


@pytest.mark.parametrize("side", ["scale", "extra", "less"])
def test_a_spec_is_compared_with_the_lora_itself(
    bishare, customers, checkpoint, here, monkeypatch, side
):
    """A mistake of the reader, which the saved tensors share, is found; `--force` keeps the old adapter."""
    from bishare_dsl.convert import from_peft

    words = ("convert", "--for", "bishare", customers[1], "--out", "new", "--model", checkpoint)
    assert bishare(*words).code == 0
    old = {path.name: path.read_bytes() for path in (here / "new").iterdir()}
    real = from_peft._spec

    def spoil(name, groups, dropout, architecture):
        ((rank, scale), sites), *_ = groups.items()
        others = [site for site in architecture.sites if site not in sites]
        chosen = {"extra": [*sites, *others[:1]], "less": sites[1:]}.get(side, sites)
        scale *= 2 if side == "scale" else 1
        return real(name, {(rank, scale): chosen}, dropout, architecture)

    monkeypatch.setattr(from_peft, "_spec", spoil)
    run = bishare(*words, "--force")
    assert (run.code, "BS607" in run.err) == (1, True), run.err
    assert {path.name: path.read_bytes() for path in (here / "new").iterdir()} == old


def test_what_many_adapters_cost(bishare):
    words = ["plan", "bishare_ke", "-m", "llama-7b", "--adapters", "200", "--memory", "80GB"]
    run = bishare(*words)
    assert (run.code, run.err) == (0, "")
    rows = {line.split("  ")[0] for line in run.out.splitlines()}
    assert {"separate adapters", "LoRA r=8", "LoRA r=2, nearest in bytes"} <= rows
    data = json.loads(bishare(*words, "--json").out)
    ways = {way["way"]: way for way in data["ways"]}
    own = ways["separate adapters"]
    assert own["own"] == 3_660_032
    assert own["disk_bytes"] == 200 * 3_660_032 * 2
    assert own["slots_bytes"] == 2 * 200 * own["slot"]
    assert ways["LoRA r=8"]["own"] == 14_024_704
    assert ways["LoRA r=2, nearest in bytes"]["own"] == 3_506_176
    free = 80 * 10**9 - data["base_bytes"]
    assert ways["LoRA r=8"]["fit"] == free // (2 * 14_024_704)
    library = ways["library, `local` is common"]
    assert library["own"] + library["once"] == 3_660_032
    assert library["disk_bytes"] == 2 * (library["once"] + 200 * library["own"])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--memory", "80GB"], "--memory goes with --adapters"),
        (["--adapters", "3", "--memory", "much"], "write `--memory 80GB`"),
        (["--adapters", "3", "--memory", f"{'9' * 400}GB"], "write `--memory 80GB`"),
        (["--adapters", "3", "--set", "r=4,8"], "--adapters takes one"),
    ],
)
def test_costs_asked_for_wrongly(bishare, more, told):
    run = bishare("plan", "lora", "-m", "llama-7b", *more)
    assert run.code == 2
    assert told in run.err


@pytest.mark.parametrize("spec", ["dora", "ia3", "bishare_ke", "module", "kind", "layer"])
def test_a_slot_is_as_large_as_the_engine_s(spec):
    """A magnitude takes a number for each output of its module, however it is shared."""
    from bishare_dsl import parse_spec, plan_spec
    from bishare_dsl.batched.bank import Layout
    from bishare_dsl.show.cost import costs

    text = "spec x\ntarget q_proj, o_proj\nshare a per module rank 4\nmagnitude per {}\n"
    shipped = spec in ("dora", "ia3", "bishare_ke")
    plan = plan_spec(spec if shipped else parse_spec(text.format(spec)), "smollm2-135m")
    assert costs(plan)[0].slot == Layout(plan).numbers


def test_a_library_lists_who_is_in_which_group(bishare, adapters):
    tasks = {"one": ["acme", "globex"], "two": ["initech"]}
    record = adapters / "lib" / "groups.json"
    record.write_text(json.dumps({"tasks": tasks, "newcomers": {"wonka": "two"}}))
    run = bishare("inspect", "adapters/lib")
    assert run.code == 0
    rows = [line.split(maxsplit=2) for line in run.out.splitlines()[-2:]]
    assert rows == [
        ["adapters/lib#one", "2", "acme, globex"],
        ["adapters/lib#two", "2", "initech, wonka"],
    ]
    found = json.loads(bishare("inspect", "adapters/lib", "--json").out)["groups"]
    assert found["adapters/lib"]["tasks"] == tasks
    record.write_text("{")
    run = bishare("inspect", "adapters/lib")
    assert run.code == 1
    assert "error[BS608]: `adapters/lib/groups.json` cannot be read" in run.err
    assert "family" in run.out
