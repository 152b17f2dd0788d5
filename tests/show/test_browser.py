"""The page in a real browser."""

import re
from itertools import pairwise, product

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

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


def test_a_tensor_of_the_whole_model_tells_its_modules_by_kind(show):
    browser = show(*ke())
    browser.find_elements(By.CSS_SELECTOR, "nav button")[2].click()
    told = hover(browser, cells(browser)[7])
    assert told[0] == "160 modules of layers 0-31 share A and B"
    assert told[3:8] == [
        *(f"self_attn.{kind}_proj: layers 0-31" for kind in "qkv"),
        "mlp.up_proj: layers 0-31",
        "mlp.down_proj: layers 0-31",
    ]


def test_it_opens_on_the_share_with_the_largest_pools(show):
    browser = show(*ke())
    [open_tab] = browser.find_elements(By.CSS_SELECTOR, "nav button[aria-selected=true]")
    assert open_tab.text.split()[0] == "inter"
    [statement] = visible(browser, ".statement")
    assert statement.text.endswith("rank 16 via KE(size = 256, kernel = kaiming_normal) scale 2")


def test_the_head_counts_what_is_private(show, planned):
    spec, plan = planned(
        "share s A per kind  B per module  rank 2 freeze A share t per model rank 1 via SS"
    )
    browser = show(plan, spec)
    assert [part.text for part in visible(browser, ".facts .item")] == [
        "160 shared by several modules (10.0%)",
        "1,056 private to one module (66.0%)",
        "384 frozen, not trained (24.0%)",
    ]
    bars = visible(browser, ".split i")
    assert [bar.get_attribute("class") for bar in bars] == ["shared", "private", "frozen"]
    widths = [bar.size["width"] for bar in bars]
    assert widths[0] < widths[2] < widths[1]


def test_a_narrow_page_hints_at_the_rest_of_a_picture(show):
    browser = show(*ke())
    assert not visible(browser, ".hint")
    size = {"width": 420, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        WebDriverWait(browser, 10).until(lambda b: len(visible(b, ".hint")) == 2)
        browser.execute_script(
            "document.querySelectorAll('section:not([hidden]) .scroll').forEach(s => s.scrollLeft = 9999)"
        )
        WebDriverWait(browser, 10).until(lambda b: not visible(b, ".hint"))
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_is_a_module_s_own_is_grey(show):
    browser = show(*ke())
    browser.find_elements(By.CSS_SELECTOR, "nav button")[0].click()
    drawn = visible(browser, "figure svg g[data-p]")
    assert {group.get_attribute("fill") for group in drawn} == {"#a3adb8"}


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


def test_a_module_that_a_share_leaves_out_is_told_so(show, planned):
    spec, plan = planned("share s where kind q_proj per model rank 2")
    browser = show(plan, spec)
    empty = browser.find_elements(By.CSS_SELECTOR, "g.none rect")
    assert len(empty) == 6
    assert hover(browser, empty[0]) == [
        "at model.layers.0.self_attn.v_proj, 64 → 16: not in this share"
    ]


def test_a_click_keeps_what_is_shown(show, planned):
    spec, plan = planned("share s per layer rank 2 via SS")
    browser = show(plan, spec)
    cell, title = cells(browser)[4], browser.find_element(By.TAG_NAME, "h1")
    on = "svg g.on rect"
    hover(browser, cell)
    ActionChains(browser).move_to_element(title).perform()
    assert not browser.find_elements(By.CSS_SELECTOR, on)
    ActionChains(browser).click(cell).move_to_element(title).perform()
    assert len(browser.find_elements(By.CSS_SELECTOR, on)) == 3
    assert not browser.find_element(By.ID, "tip").is_displayed()
    ActionChains(browser).click(cell).move_to_element(title).perform()
    assert not browser.find_elements(By.CSS_SELECTOR, on)


def test_the_legend_points_too(show, planned):
    spec, plan = planned("share s per layer rank 2 via SS")
    browser = show(plan, spec)
    entries = browser.find_elements(By.CSS_SELECTOR, "figure:nth-of-type(1) li[data-p]")
    assert [entry.text for entry in entries] == ["layer_0", "layer_1", "layer_2"]
    assert hover(browser, entries[1])[0] == "3 modules of layer 1 share A and B"


def test_keys_move_between_shares(show):
    browser = show(*ke())
    browser.find_elements(By.CSS_SELECTOR, "nav button")[0].send_keys(Keys.ARROW_LEFT)
    assert visible(browser, ".statement")[0].text.startswith("share inter per model rank 16")


def luminance(browser, selector, what="background-color"):
    element = browser.find_element(By.CSS_SELECTOR, selector)
    red, green, blue = map(int, re.findall(r"\d+", element.value_of_css_property(what))[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(("scheme", "clicks"), list(product(("light", "dark"), range(4))))
def test_light_and_dark(show, planned, scheme, clicks):
    spec, plan = planned("share s where kind q_proj per model rank 2")
    browser = show(plan, spec)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    button = browser.find_element(By.ID, "theme")
    for _ in range(clicks):
        button.click()
    chosen = ("auto", "light", "dark", "auto")[clicks]
    assert button.text == f"theme: {chosen}"
    dark = chosen == "dark" or (chosen == "auto" and scheme == "dark")
    assert (luminance(browser, "body") < 40) == dark
    # What is written can be read on either.
    text, page_of = luminance(browser, "h1", "color"), luminance(browser, "body")
    assert abs(text - page_of) > 150
    assert abs(luminance(browser, "svg text", "fill") - luminance(browser, "figure")) > 80


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
