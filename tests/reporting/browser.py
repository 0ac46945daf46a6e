"""Headless Chromium, where there is one: apt-get install chromium, pip install 'lightning-embed[dashboards]'."""

import shutil
from contextlib import contextmanager

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium():
    """A browser; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: the extra dashboards")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium in the path")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page that was opened: what it said on the console, what it asked for, and where it was led."""

    def __init__(self, browser, url, width=1600, scheme="light"):
        self.said, self.asked = [], []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("console", lambda one: self.said.append(f"{one.type}: {one.text}"))
        self.page.on("pageerror", lambda one: self.said.append(f"error: {one}"))
        self.page.on("request", lambda one: self.asked.append(one.url))
        self.page.goto(url)

    def scroll(self):
        """To the end and back, so that everything comes near once."""
        height = self.page.evaluate("document.documentElement.scrollHeight")
        for top in range(0, height, 600):
            self.page.evaluate(f"scrollTo(0, {top})")
            self.page.wait_for_timeout(60)
        self.page.evaluate("scrollTo(0, 0)")
        self.page.wait_for_timeout(300)

    @property
    def abroad(self):
        """Requests that went anywhere but to this file."""
        return [url for url in self.asked if not url.startswith(("file:", "data:", "blob:"))]
