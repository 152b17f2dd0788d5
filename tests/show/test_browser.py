"""The page in a real browser."""

from itertools import pairwise

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from bishare_dsl.api import plan_spec
from bishare_dsl.language import parse_spec, read_file
from bishare_dsl.models import preset
from bishare_dsl.resources import shipped_specs
from bishare_dsl.show.page import page
from tests.browser import chromium
from tests.show.conftest import architecture, experts

CELLS = "section:not([hidden]) figure:nth-of-type({}) svg rect[data-i]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def show(browser, tmp_path):
    """Opens the page of a plan. In the end its console has to be empty, and it to have asked for nothing."""

    def show(plan, spec=None):
        path = tmp_path / "page.html"
        path.write_text(page(plan, spec), encoding="utf-8")
        browser.get(path.as_uri())
        return browser

    yield show
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def hover(browser, cell):
    """Point at a cell; what the page then tells."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", cell)
    ActionChains(browser).move_to_element(cell).perform()
    tip = browser.find_element(By.ID, "tip")
    assert tip.is_displayed()
    return tip.text.splitlines()


def cells(browser, panel=1):
    return browser.find_elements(By.CSS_SELECTOR, CELLS.format(panel))


def visible(browser, selector):
    return [
        part for part in browser.find_elements(By.CSS_SELECTOR, selector) if part.is_displayed()
    ]


def ke():
    spec = read_file(shipped_specs()["bishare_ke"])[0]
    return plan_spec(spec, "llama-7b"), spec


def test_pointing_at_a_module_says_who_shares_and_what(show):
    browser = show(*ke())
    browser.find_elements(By.CSS_SELECTOR, "nav button")[1].click()
    # Cells come pool by pool: the second of layer 3.
    assert hover(browser, cells(browser, 1)[3 * 5 + 1]) == [
        "5 modules of layer 3 share A and B",
        "A: 4 × 256 = 1,024 trainable parameters, initial values kaiming_uniform",
        "B: 4 × 256 = 1,024 trainable parameters, initial values zeros",
        *(f"model.layers.3.self_attn.{kind}_proj" for kind in "qkv"),
        "model.layers.3.mlp.up_proj",
        "model.layers.3.mlp.down_proj",
        "at model.layers.3.self_attn.k_proj, 4,096 → 4,096; private: K_A 1 × 16, K_B 1 × 16",
    ]
    picked = browser.find_elements(By.CSS_SELECTOR, "svg.pick g.on rect")
    assert len(picked) == 5
    # A and B are shared alike; the kernels have a panel of their own.
    assert hover(browser, cells(browser, 2)[1])[:2] == [
        "K_A and K_B of this module alone",
        "K_A: 1 × 16 = 16 trainable parameters, initial values kaiming_normal",
    ]


def test_counts(show):
    plan, spec = ke()
    browser = show(plan, spec)
    assert "3,593,600 trainable parameters" in browser.find_element(By.CLASS_NAME, "facts").text
    for i, (name, count) in enumerate(plan.shares.items()):
        tab = browser.find_elements(By.CSS_SELECTOR, "nav button")[i]
        assert tab.text.split() == [name, f"{count:,}"]
        tab.click()
        assert len(visible(browser, "section")) == 1
        captions = [caption.text for caption in visible(browser, "figcaption")]
        pools = [p for p in plan.pools if p.share == name]
        size = sum(plan.tensor[pool.tensor].size for pool in pools)
        roles = ["A, B"] if name == "local" else ["A, B", "K_A, K_B"]
        assert [
            caption.split("  ")[0].strip()[: len(r)]
            for caption, r in zip(captions, roles, strict=True)
        ] == roles
        assert captions[0].endswith(f" {size:,} trainable parameters")
        assert captions[-1].endswith(
            f" {size if name == 'local' else count - size:,} trainable parameters"
        )
        drawn = visible(browser, "figure:nth-of-type(1) svg g[data-p]")
        assert len(drawn) == len(pools) // 2
        assert len(cells(browser)) == len(plan.sites)


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>"]
)
def test_names_are_text(show, name):
    model = architecture(2, {f"self_attn.{name}": (64, 64), "mlp.up_proj": (64, 64)}, name=name)
    spec = parse_spec("spec s target layer >= 0 share s per path rank 2")
    spec = spec.model_copy(update={"name": name})
    plan = plan_spec(spec, model)
    browser = show(plan, spec)
    assert browser.title == f"{name} on {name}"
    assert browser.find_element(By.TAG_NAME, "h1").text == f"{name} on {name}"
    assert not browser.find_elements(By.CSS_SELECTOR, "body img")
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 2
    assert any(name in line for line in hover(browser, cells(browser)[0]))


@pytest.mark.parametrize(
    "model", [architecture(1), preset("llama-3-70b"), experts(4, 42)], ids=["1", "80", "experts"]
)
def test_nothing_is_cut_off_or_overlaps(show, model):
    """Whatever the depth and the height: names of rows end left of the grid, and do not run into each other."""
    spec = parse_spec("spec s target q_proj, v_proj, up_proj share s per layer rank 2 via SS")
    browser = show(plan_spec(spec, model), spec)
    boxes = browser.execute_script(
        """
        const svg = document.querySelector('svg'), box = part => {
          const {left, right, top, bottom} = part.getBoundingClientRect();
          return {left, right, top, bottom};
        };
        return {
          svg: box(svg),
          rows: [...svg.querySelectorAll('text.end')].map(box),
          columns: [...svg.querySelectorAll('text.middle')].map(box),
          cells: [...svg.querySelectorAll('rect')].map(box),
          wide: document.documentElement.scrollWidth - innerWidth,
        }"""
    )
    assert boxes["wide"] <= 0
    left = min(cell["left"] for cell in boxes["cells"])
    for text in boxes["rows"]:
        assert boxes["svg"]["left"] <= text["left"] < text["right"] < left
    for cell in boxes["cells"]:
        assert cell["right"] <= boxes["svg"]["right"]
        assert cell["bottom"] <= boxes["svg"]["bottom"]
    columns = boxes["columns"]
    assert all(a["right"] < b["left"] for a, b in pairwise(columns))
    rows = boxes["rows"][1:]
    middles = [(row["top"] + row["bottom"]) / 2 for row in rows]
    assert all(b - a >= 10 for a, b in pairwise(middles))


def test_in_a_notebook_the_picture_is_a_frame_of_its_own(browser, tmp_path, planned):
    plan = planned("share s per layer rank 2 via SS")[1]
    path = tmp_path / "notebook.html"
    path.write_text(f"<body><h1>Cell</h1>{plan._repr_html_()}</body>", encoding="utf-8")
    browser.get(path.as_uri())
    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
    assert browser.find_element(By.TAG_NAME, "h1").text == "small on small"
    assert hover(browser, cells(browser)[0])[0] == "3 modules of layer 0 share A and B"
    cut = browser.execute_script(
        "return document.documentElement.scrollHeight - document.documentElement.clientHeight"
    )
    assert cut <= 0
    assert browser.get_log("browser") == []
