"""A real browser for tests: Debian's chromium and chromium-driver, which `.ci/run` installs.

Where there is no Chromium these tests are skipped, unless ``BISHARE_BROWSER`` says that there must be one.
"""

import os
import shutil
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
    "disable-dev-shm-usage",
    *("disable-background-networking", "disable-component-update", "window-size=1440,1000"),
)


def missing(what):
    """Skip a test for what is not there, or fail where a browser must be there."""
    (pytest.fail if os.environ.get("BISHARE_BROWSER") else pytest.skip)(what)


@contextmanager
def chromium(profile):
    """Start the browser, with a folder for its profile."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        missing("no chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield opened
    finally:
        opened.quit()
