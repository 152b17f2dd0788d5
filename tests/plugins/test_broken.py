"""Transforms of other packages that do not hold to the protocol: an error with a code, a place, a package."""

import shutil
import sys

import pytest

from bishare_dsl import compile_spec, load_adapter, parse_spec, plan_spec
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.language import read
from bishare_dsl.models import preset
from bishare_dsl.plan import build_plan
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.transforms import transform_names
from bishare_dsl.transforms.registry import package_version
from tests.plugins.conftest import CYCLIC, forget

TEXT = "spec s\ntarget q_proj, k_proj\nshare x per model rank 2 via {via}\n"


@pytest.fixture
def broken(install):
    """Installs a package with this source for the time of a test."""
    return lambda source: install(
        "broken-package", "broken_module", source, Cyclic="broken_module:Cyclic"
    )


def refused(build, why, package="broken-package"):
    """It fails with BS214 alone, whose message names the transform, its package, and why."""
    with pytest.raises(BishareError) as caught:
        build()
    (problem,) = caught.value.problems
    assert problem.code == "BS214"
    assert f"`Cyclic` of package `{package}`" in problem.message
    assert why in problem.message
    return problem


def fails(text, why):
    """Planning fails so, at the transform."""
    spec, where = read(text)
    problem = refused(lambda: build_plan(spec, preset("smollm2-135m")), why)
    span = where.locate(problem.loc)
    assert span is not None
    assert where.source.text[span.start : span.end].startswith(text.split("via ")[1].split()[0])


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raise RuntimeError('no\\nlicence')", "RuntimeError: no licence"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "AttributeError"),
        ("Cyclic = 3", "_module:Cyclic is not a subclass of bishare_dsl.transforms.Transform"),
        ("class Cyclic: name = 'Cyclic'", "is not a subclass"),
        (CYCLIC.replace('("S_A", "S_B")', "3"), "`pooled` and `owned` must be tuples"),
        (CYCLIC.replace('("S_A", "S_B")', '("A",)'), "the role 'A' is taken"),
        (CYCLIC.replace('("S_A", "S_B")', '("gain_out",)'), "the role 'gain_out' is taken"),
        (CYCLIC.replace('("S_A", "S_B")', '("S.A", "S.B")'), "the role 'S.A' is not a name"),
        (CYCLIC.replace('("S_A", "S_B")', '("S_A", 3)'), "the role 3 is not a name"),
        (CYCLIC + "\n    fixed = ('S_C',)\n", "'S_C', which is none of ['A', 'B', 'S_A', 'S_B']"),
        (CYCLIC + "\n    auto = ('perod',)\n", "`auto` has 'perod', which is none of ['period']"),
        (CYCLIC.replace('"Cyclic"', '"Other"'), "broken_module:Cyclic calls itself 'Other'"),
        (CYCLIC.replace('name: ClassVar[str] = "Cyclic"', ""), "calls itself None"),
    ],
)
def test_what_does_not_load(broken, source, why):
    broken(source)
    fails(TEXT.format(via="Cyclic"), why)


def test_it_is_told_in_one_line_of_the_command_line(broken, here, bishare):
    broken("1 / 0")
    (here / "x.share").write_text(TEXT.format(via="Cyclic"))
    run = bishare("check", "x.share")
    assert run.code == 1
    assert "error[BS214]: the transform `Cyclic` of package `broken-package`" in run.out
    assert "x.share:3:" in run.out


def test_a_broken_package_disturbs_nobody_else(install):
    install(
        "broken-package",
        "broken_module",
        "1 / 0",
        Cyclic="broken_module:Cyclic",
        KE="broken_module:KE",
    )
    assert "Cyclic" in transform_names()
    assert package_version("KE") is None  # A built-in name is not the package's.
    plan_spec(parse_spec(TEXT.format(via="SS")), "smollm2-135m")


def change(method, body, arguments):
    """The example with a method of another body behind its own."""
    return f"{CYCLIC}\n    def {method}(self, {arguments}):\n        {body}\n"


SHARED, SITE, ROLE = "role, rank, widths", "rank, width", "role"
IN_THE_PLAN = [
    ("shared_shape", SHARED, "raise TypeError('no idea')", "`shared_shape` raises TypeError: no idea"),
    ("shared_shape", SHARED, "return rank", "`shared_shape` gives 2, which is not a shape"),
    ("shared_shape", SHARED, "return rank, 0", "gives (2, 0), which is not a shape"),
    ("shared_shape", SHARED, "return rank, 1.5", "gives (2, 1.5), which is not a shape"),
    ("shared_shape", SHARED, "return rank, 3, 4", "gives (2, 3, 4), which is not a shape"),
    ("fan_in", SHARED, "return self.nothing", "`fan_in` raises AttributeError"),
    ("own", SITE, "return None", "`own` raises TypeError"),
    ("own", SITE, "return {}", "`own` gives the roles [], and `owned` says ['S_A', 'S_B']"),
    ("own", SITE, "return {r: 7 for r in self.owned}", "`own` gives 7, which is not a shape"),
    ("own", SITE, "return {r: Own(-1, 1) for r in self.owned}", "gives (-1, 1), which is not a shape"),
    ("own", SITE, "return {r: Own(1, 1)[5] for r in self.owned}", "`own` raises IndexError"),
    ("rows", SITE, "return rank / self.nothing", "`rows` raises AttributeError"),
    ("reach", SITE, "return max([])", "`reach` raises ValueError"),
    ("review", "rank, widths", "yield from 3", "`review` raises TypeError"),
    ("start", ROLE, "return 'zeros', 1, 2", "`start` raises TypeError"),
    ("start", ROLE, "return Start('one' if role == 'A' else 'zeros')", "`start` gives 'one', which is none of ['zeros'"),
    ("zeros", "zero", "return zero['A']", "`zeros` raises TypeError"),
    ("check_rank", "rank", "raise KeyError(rank)", "`check_rank` raises KeyError: 2"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "arguments", "body", "why"), IN_THE_PLAN)
def test_a_method_that_fails_while_planning(broken, method, arguments, body, why):
    broken(change(method, body, arguments))
    fails(TEXT.format(via="Cyclic(period = 7)"), why)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise LookupError('where')", "`factors` raises LookupError: where"),
        ("return tensors['Z'], tensors['B']", "`factors` raises KeyError: 'Z'"),
        ("return tensors['A'].t() @ tensors['A'].t(), 0", "`factors` raises RuntimeError"),
        ("return tensors['A']", "`factors` gives no pair of factors"),
        ("return None", "`factors` gives no pair of factors"),
        ("return bool(tensors['A'].any()), 1", "`factors` raises RuntimeError"),
        (
            "tensors['A'].mul_(2); return tensors['A'][:, :width.d_in], tensors['B']",
            "`factors` changes `A` in place",
        ),
        (
            "b = tensors['S_B']; b += 1; return tensors['A'], tensors['B']",
            "`factors` changes `S_B` in place",
        ),
        ("return 1, 2", "`factors` gives an effective A that is not a tensor"),
        (
            "a = self.repeat(tensors['S_A'], tensors['A'], width.d_in); return a + 0j, a",
            "`factors` gives an effective A of complex numbers at a 32 -> 40 module",
        ),
        (
            "return tensors['A'], tensors['B']",
            "effective A of shape (2, 7) at a 32 -> 40 module, not (2, 32)",
        ),
        (
            "a = self.repeat(tensors['S_A'], tensors['A'], width.d_in); return a, a",
            "effective B of shape (2, 32) at a 32 -> 40 module, not (2, 40)",
        ),
    ],
)
def test_factors_that_are_none(broken, body, why):
    broken(change("factors", body, "tensors, rank, width"))
    spec, model = parse_spec(TEXT.format(via="Cyclic(period = 7)")), tiny_model("llama")
    refused(lambda: compile_spec(spec, model), why)
    assert not hasattr(model, "bishare")
    assert all(parameter.requires_grad for parameter in model.parameters())


# Adapters that outlive what they were made with -----------------------------------------------------


@pytest.fixture
def saved(install, tmp_path):
    site = install("cyclic-package", "cyclic_module", CYCLIC, Cyclic="cyclic_module:Cyclic")
    model = compile_spec(TEXT.format(via="Cyclic(period = 7)"), tiny_model("llama"))
    model.bishare.save_pretrained(tmp_path / "adapter")
    return site


def uninstall(site):
    for path in site.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    del sys.modules["cyclic_module"]
    forget()


def test_an_adapter_of_a_package_that_is_gone(saved, tmp_path, bishare):
    uninstall(saved)
    with pytest.raises(BishareError, match=r"BS619.*`Cyclic`, which is not installed") as caught:
        load_adapter(tmp_path / "adapter", tiny_model("llama"))
    assert "install what it was saved with: cyclic-package 2.1" in str(caught.value)
    run = bishare("inspect", tmp_path / "adapter")
    assert (run.code, "cyclic-package 2.1" in run.err) == (1, True)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("period: PositiveInt", "length: PositiveInt", "it does not take {'period': 7}"),
        ("[:, :width]", "", "effective A of shape (2, 35) at a 32 -> 40 module, not (2, 32)"),
        ('tensors["S_A"]', 'tensors["S_C"]', "`factors` raises KeyError: 'S_C'"),
    ],
)
def test_an_adapter_of_a_package_that_has_changed(saved, install, tmp_path, old, new, why):
    uninstall(saved)
    assert old in CYCLIC
    source = CYCLIC.replace(old, new)
    install("cyclic-package", "cyclic_module", source, Cyclic="cyclic_module:Cyclic")
    model = tiny_model("llama")
    refused(lambda: load_adapter(tmp_path / "adapter", model), why, "cyclic-package")
    assert not hasattr(model, "bishare")
