"""The playground in a real browser, as `make docs` and `make playground` have built it."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from bishare_dsl.models import PRESETS
from bishare_dsl.resources import shipped_specs
from tests.browser import chromium, missing

pytestmark = pytest.mark.long

SITE = Path(__file__).parents[2] / "build" / "docs"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if not (SITE / "playground" / "runtime" / "runtime.json").exists():
        missing("no playground: make docs playground")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        browser.get(f"http://127.0.0.1:{server.server_port}/playground.html")
        WebDriverWait(browser, 240).until(
            lambda b: b.find_element(By.ID, "workbench").is_displayed()
        )
        WebDriverWait(browser, 120).until(lambda b: b.find_element(By.ID, "answer").text)
        yield browser
        assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    server.shutdown()
    server.server_close()


def run(page, command, text=None):
    """What the page shows behind a click on a command."""
    if text is not None:
        spec = page.find_element(By.ID, "spec")
        spec.clear()
        spec.send_keys(text)
    page.find_element(By.CSS_SELECTOR, f"[data-command={command}]").click()
    idle(page)
    return page.find_element(By.ID, "answer").text


def idle(page):
    WebDriverWait(page, 120).until(lambda b: b.find_element(By.ID, "status").text == "")


def text_of(page):
    return page.find_element(By.ID, "spec").get_property("value")


def test_it_offers_the_presets_and_the_specs_that_ship(page):
    names = [
        [o.text for o in Select(page.find_element(By.ID, i)).options] for i in ("model", "specs")
    ]
    assert names == [list(PRESETS), ["a first spec", *shipped_specs()]]
    assert len(text_of(page).splitlines()) == 6
    assert "share kinds  per kind        rank 8" in text_of(page)


def test_answer_and_picture_stand_beside_the_text(page):
    size = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.execute_script("window.scrollTo(0, 0)")
        run(page, "check")
        text, answer, picture, commands = (
            page.find_element(By.ID, name).rect
            for name in ("text", "answer", "picture", "commands")
        )
        for part in (answer, picture):
            assert part["x"] > text["x"] + text["width"]
        assert picture["width"] > 500
        for part in (text, answer, picture, commands):
            assert part["y"] + part["height"] <= 800
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_plan(page):
    Select(page.find_element(By.ID, "specs")).select_by_visible_text("bishare_ke")
    assert "trainable params: 3,660,032" in run(page, "plan")
    Select(page.find_element(By.ID, "model")).select_by_visible_text("qwen2.5-7b")
    idle(page)
    assert "on qwen2.5-7b" in run(page, "plan")
    Select(page.find_element(By.ID, "model")).select_by_visible_text("llama-7b")


def test_a_link_brings_the_spec_and_its_picture(page):
    run(page, "check", "spec linked\ntarget q_proj\nshare a per layer rank 4\n")
    page.find_element(By.ID, "link").click()
    link = page.execute_script("return location.href")
    page.get("about:blank")
    page.get(link)
    WebDriverWait(page, 240).until(lambda b: "fine" in b.find_element(By.ID, "answer").text)
    assert text_of(page) == "spec linked\ntarget q_proj\nshare a per layer rank 4\n"
    assert "linked on llama-7b" in page.find_element(By.ID, "picture").get_attribute("srcdoc")
