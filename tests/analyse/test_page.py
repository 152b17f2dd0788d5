"""What `bishare analyse` writes: the page in a real browser, the figures."""

import json

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from bishare_dsl.analyse import heat
from bishare_dsl.analyse.analysis import compare_adapters
from bishare_dsl.analyse.figures import figures
from bishare_dsl.analyse.page import page
from tests.analyse.conftest import BY_LAYER
from tests.show.test_browser import browser  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def analyses(read, analysed):
    adapters = [read(BY_LAYER, name=name, seed=seed) for seed, name in enumerate("ab")]
    found = [analysed(BY_LAYER, name, seed) for seed, name in enumerate("ab")]
    return found, compare_adapters(adapters)


def test_the_page_tells_each_cell(browser, analyses, tmp_path):  # noqa: F811
    path = tmp_path / "page.html"
    path.write_text(page(*analyses), encoding="utf-8")
    browser.get(path.as_uri())
    tabs = browser.find_elements(By.CSS_SELECTOR, "nav button")
    assert [tab.text for tab in tabs][:4] == ["summary", "RMI", "cosine", "angles of A"]
    shown = browser.find_element(By.CSS_SELECTOR, "section:not([hidden])").text
    assert "layer A 16 4" in shown
    # Eight layers: one for the model and one for eight layers is the same, and stands there once.
    assert "layer // 8 = model A" in shown
    assert "How to read a row" in shown
    tabs[3].click()
    svg = browser.find_element(By.CSS_SELECTOR, "section:not([hidden]) figure svg")
    cells = svg.find_element(By.CSS_SELECTOR, "rect.frame")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", cells)
    size, n = cells.size["width"], 5
    step = size / n
    centre = (n - 1) / 2

    def point(row, column):
        ActionChains(browser).move_to_element_with_offset(
            cells, (column - centre) * step, (row - centre) * step
        ).perform()
        return browser.find_element(By.ID, "tip").text.splitlines()

    assert point(0, 1) == ["self_attn.q_proj, self_attn.k_proj", "1.000"]
    assert point(4, 0) == ["mlp.down_proj, self_attn.q_proj", "their widths differ"]
    browser.find_element(By.ID, "theme").click()
    assert browser.find_element(By.ID, "theme").text == "theme: light"
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_a_cell_is_as_strong_as_its_value(analyses):
    charts = {(c.measure, c.title): c for c in analyses[0][0].charts}
    drawn = heat.body(charts["angles_in", "modules of a layer"])
    assert drawn.count('class="none"') == 1  # Of down_proj with the four others, either way.
    (cells,) = [part for part in drawn.split("<path ") if 'class="none"' in part]
    assert cells.count("M") == 8
    (full,) = [
        part for part in drawn.split("<path ") if 'fill-opacity="1"' in part and "high" in part
    ]
    assert full.count("M") == 4 * 4 + 1


def test_the_figures_are_plain_json(analyses):
    found = json.loads(json.dumps(figures(*analyses)))
    (row,) = [r for r in found["adapters"][0]["joint"] if (r["key"], r["common"]) == ("layer", "A")]
    assert row["kept"] == pytest.approx(1, abs=1e-3)
    assert row["chance"] < 0.65
    assert row["kept_by_rank"]["1"] < row["kept_by_rank"]["2"] < row["kept_by_rank"]["4"]
    assert len(found["adapters"][0]["modules"]) == 40
    (chart,) = [c for c in found["between"] if c["measure"] == "rmi"]
    assert chart["labels"] == ["a", "b"]
    charts = {(c["measure"], c["title"]): c for c in found["adapters"][0]["charts"]}
    assert charts["angles_in", "modules of a layer"]["values"][0][4] is None
