from xml.etree import ElementTree

import pytest

from bishare_dsl.api import plan_spec
from bishare_dsl.language import read_file
from bishare_dsl.models import preset
from bishare_dsl.resources import shipped_specs
from bishare_dsl.show.picture import picture
from bishare_dsl.show.svg import whole
from bishare_dsl.spec import EACH_ADAPTER
from tests.show.conftest import experts

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</style></svg><script>alert(1)</script>&amp;\"'"


def drawn(spec, plan):
    text = whole(picture(plan, spec))
    return ElementTree.fromstring(text)


def pools(root):
    """The groups of cells by their colour, and the cells of no pool."""
    groups = [g for g in root.iter(f"{SVG}g") if g.get("data-p") is not None]
    none = [g for g in root.iter(f"{SVG}g") if g.get("class") == "none"]
    return groups, none


def test_a_cell_for_each_module_in_the_colour_of_its_pool(planned):
    groups, none = pools(drawn(*planned("share s where layer > 0 per layer rank 2 via SS")))
    assert [len(list(g.iter(f"{SVG}rect"))) for g in groups] == [3, 3]
    assert len({g.get("fill") for g in groups}) == 2
    assert [len(list(g.iter(f"{SVG}rect"))) for g in none] == [3]
    columns = [{rect.get("x") for rect in g.iter(f"{SVG}rect")} for g in groups]
    assert [len(found) for found in columns] == [1, 1]
    assert columns[0] != columns[1]


def test_names_are_text(planned):
    spec, plan = planned("share s per model rank 2 via SS")
    odd = plan.model_copy(
        update={"spec": HOSTILE, "base": plan.base.model_copy(update={"name": HOSTILE})}
    )
    root = drawn(spec, odd)
    assert HOSTILE in root.get("aria-label")
    assert not list(root.iter(f"{SVG}script"))


def test_nothing_is_asked_of_a_network(planned):
    text = whole(picture(planned("share s per layer rank 2 via SS")[1]))
    assert text.count("http") == 1  # the namespace
    assert "url(" not in text
    assert "@import" not in text


def test_experts_that_share_alike_are_one_row(planned):
    text = (
        "share own per module rank 2 "
        "share bands where expert != none per layer, kind, expert // 2 rank 2"
    )
    spec, plan = planned(text, experts(2, 6), target="q_proj, up_proj")
    shown = picture(plan, spec)
    own, bands = shown.panels
    # Private pairs say nothing of who shares, so all experts are one row there.
    assert own.grid.rows == ("self_attn.q_proj", "mlp.experts.0-5.up_proj")
    assert bands.grid.rows == (
        "self_attn.q_proj",
        *(f"mlp.experts.{pair}.up_proj" for pair in ("0-1", "2-3", "4-5")),
    )
    groups, _ = pools(drawn(spec, plan))
    assert [rect.get("data-i") for g in groups[2 * 2 :] for rect in g.iter(f"{SVG}rect")][:2] == [
        "1 2",
        "3 4",
    ]
    assert all(len(list(g.iter(f"{SVG}rect"))) == 1 for g in groups[: 2 * 2])
    # Every other expert is of another pool: no two neighbours are alike.
    odd = planned(
        "share s where expert != none per kind, expert % 2 rank 2",
        experts(2, 4),
        target="q_proj, up_proj",
    )[1]
    assert len(picture(odd).panels[0].grid.rows) == 1 + 4


@pytest.mark.parametrize("name", shipped_specs())
def test_specs_that_ship_are_drawn(name):
    spec = read_file(shipped_specs()[name])[0]
    plan = plan_spec(spec, preset("llama-7b"))
    groups, none = pools(drawn(spec, plan))
    # One picture shows one adapter, so tensors of a library and of each of its adapters are drawn as one.
    alike = {
        (
            p.share,
            tuple(k for k in p.key if k != EACH_ADAPTER),
            p.members,
            plan.tensor[p.tensor].trainable,
        )
        for p in plan.pools
    }
    # What a share subtracts has no key: each module has it for itself.
    starts = sum(1 for term in plan.terms if term.share.endswith(".start"))
    assert len(groups) == len(alike) + starts
    cells = [len(list(g.iter(f"{SVG}rect"))) for g in (*groups, *none)]
    assert sum(cells) % len(plan.sites) == 0 or any("expert" in s.path for s in plan.sites)
    assert "per " in ElementTree.tostring(drawn(spec, plan), encoding="unicode")


def test_all_is_inside_the_picture(planned):
    root = drawn(*planned("share s per module rank 2 share t per layer rank 1 via SS"))
    width, height = int(root.get("width")), int(root.get("height"))
    moves = [
        [int(part) for part in g.get("transform")[len("translate(") : -1].split(",")]
        for g in root.findall(f"{SVG}g")
    ]
    assert all(0 < x < width and 0 < y < height for x, y in moves)
