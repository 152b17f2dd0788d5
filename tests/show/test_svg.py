from itertools import product
from xml.etree import ElementTree

import pytest

from bishare_dsl.api import plan_spec
from bishare_dsl.language import read_file
from bishare_dsl.models import preset
from bishare_dsl.resources import shipped_specs
from bishare_dsl.show.colours import PALETTE, colours
from bishare_dsl.show.picture import picture
from bishare_dsl.show.svg import draw
from tests.browser import chromium
from tests.show.conftest import architecture, experts

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</style></svg><script>alert(1)</script>&amp;\"'"


def drawn(spec, plan):
    return ElementTree.fromstring(draw(plan, spec))


def groups_of(root, look):
    """The groups of cells of a look, without those of the legend."""
    groups = [g for g in root.iter(f"{SVG}g") if g.get("class") == look]
    return [g for g in groups if any(int(r.get("x", 0)) for r in g.iter(f"{SVG}rect"))]


def words_of(root):
    return " ".join(text.text or "" for text in root.iter(f"{SVG}text"))


def test_a_cell_for_each_module_in_the_colour_of_its_pool(planned):
    root = drawn(*planned("share s where layer > 0 per layer rank 2 via SS"))
    groups, none = groups_of(root, "pool"), groups_of(root, "none")
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
    text = draw(planned("share s per layer rank 2 via SS")[1])
    assert text.count("http") == 1  # the namespace
    assert "url(" not in text
    assert "@import" not in text


def test_experts_that_share_alike_are_one_row(planned):
    text = (
        "share own per module rank 2 "
        "share bands where expert != none per layer, kind, expert // 2 rank 2"
    )
    spec, plan = planned(text, experts(2, 6), target="q_proj, up_proj")
    own, bands = (panel for section in picture(plan, spec) for panel in section.panels)
    # Private pairs say nothing of who shares, so all experts are one row there.
    assert own.grid.rows == ("self_attn.q_proj", "mlp.experts.0-5.up_proj")
    assert bands.grid.rows == (
        "self_attn.q_proj",
        *(f"mlp.experts.{pair}.up_proj" for pair in ("0-1", "2-3", "4-5")),
    )
    cells = [len(list(g.iter(f"{SVG}rect"))) for g in groups_of(drawn(spec, plan), "pool")]
    assert cells == [1] * 2 * 3
    # Every other expert is of another pool: no two neighbours are alike.
    odd = planned(
        "share s where expert != none per kind, expert % 2 rank 2",
        experts(2, 4),
        target="q_proj, up_proj",
    )[1]
    assert len(picture(odd)[0].panels[0].grid.rows) == 1 + 4


@pytest.mark.parametrize("name", shipped_specs())
def test_specs_that_ship_are_drawn(name):
    spec = read_file(shipped_specs()[name])[0]
    plan = plan_spec(spec, preset("llama-7b"))
    root = drawn(spec, plan)
    for panel in (panel for section in picture(plan, spec) for panel in section.panels):
        assert f"{', '.join(panel.roles)}: " in words_of(root)
        assert f"{panel.parameters:,}" in words_of(root)
    groups = [*groups_of(root, "pool"), *groups_of(root, "private"), *groups_of(root, "none")]
    cells = sum(len(list(g.iter(f"{SVG}rect"))) for g in groups)
    assert cells % len(plan.sites) == 0 or any("expert" in s.path for s in plan.sites)
    assert "per " in words_of(root)


def test_private_modules_share_no_colour_and_the_legend_says_each_look(planned):
    shared = drawn(*planned("share s A per layer B per module rank 2 freeze A"))
    assert len(groups_of(shared, "pool")) == 3
    assert not groups_of(shared, "private")  # A line of text instead of a grid.
    assert "B: private, a tensor for each module" in words_of(shared)
    assert words_of(shared).endswith("modules of one colour share a tensor frozen")
    private = drawn(*planned("share s where layer > 0 per module rank 2"))
    assert len(groups_of(private, "private")) == 6
    assert words_of(private).endswith("a module with a tensor of its own not in this share")
    many = drawn(*planned("share s per layer rank 1 via SS", architecture(layers=11)))
    assert "the 10 colours repeat" in words_of(many)


def test_counts_are_of_the_model_and_tooltips_name_the_tensor(planned):
    root = drawn(*planned("share s per layer rank 2 via SS"))
    words = words_of(root)
    assert words.startswith("small on small All counts are of this model of 3 layers.")
    assert "100% of the trained parameters are shared" in words
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert titles[0] == "layer_0: A 2 x 64, B 2 x 96, 3 modules"


def test_any_viewer_and_a_notebook_draw_it(planned):
    spec, plan = planned("share s per layer rank 2 via SS")
    text = draw(plan, spec)
    assert "var(" not in text
    light, dark = text.split("@media")
    assert "fill: #1f2328" in light
    assert "fill: #e6edf3" in dark
    assert plan._repr_svg_() == draw(plan)
    assert not hasattr(plan, "_repr_html_")


def test_all_is_inside_the_picture_in_a_browser(tmp_path, planned):
    """On a phone, where the picture of six layers has its own size; and in dark mode."""
    path = tmp_path / "picture.svg"
    spec, plan = planned("share s per module rank 2 share t per layer rank 1 via SS")
    path.write_text(draw(plan, spec), encoding="utf-8")
    with chromium(tmp_path / "profile") as browser:
        browser.get(path.as_uri())
        width, height, boxes = browser.execute_script(
            "const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom] };"
            "const svg = document.documentElement;"
            "return [svg.width.baseVal.value, svg.height.baseVal.value,"
            " [...svg.querySelectorAll('text, rect')].map(box)]"
        )
        dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        colour = browser.execute_script(
            "return getComputedStyle(document.querySelector('text')).fill"
        )
    assert width <= 358  # GitHub's on a phone of 390 pixels.
    assert all(0 <= a < c <= width and 0 <= b < d <= height for a, b, c, d in boxes)
    assert colour == "rgb(230, 237, 243)"


def distance(one, other):
    """Of two colours, in sRGB; black and white are 441 apart."""
    parts = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (one, other)]
    return sum((a - b) ** 2 for a, b in zip(*parts, strict=True)) ** 0.5


def test_colours_can_be_distinguished_on_white_and_on_black():
    assert min(distance(a, b) for a, b in product(PALETTE, PALETTE) if a != b) > 45
    for colour in PALETTE:
        assert distance(colour, "#ffffff") > 90
        assert distance(colour, "#0d1117") > 130


def test_few_pools_have_different_colours_and_neighbours_always():
    assert len({*colours([(0, 0)] * 10)}) == 10
    places = [(row, column) for row in range(7) for column in range(32)]
    chosen = dict(zip(places, colours(places), strict=True))
    for (row, column), colour in chosen.items():
        assert colour not in (chosen.get((row + 1, column)), chosen.get((row, column + 1)))
