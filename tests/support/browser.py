"""Headless Chromium, driven by Selenium."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--force-color-profile=srgb", "--allow-file-access-from-files",
)  # fmt: skip


class Browser:
    """Pages as screens of several widths show them."""

    def __init__(self, driver: Chrome) -> None:
        self._driver = driver

    def _cdp(self, command: str, **params: Any) -> Any:
        return self._driver.execute_cdp_cmd(command, params)

    def show(self, page: Path, width: int, scheme: str = "light", *, motion: str = "no-preference") -> None:
        """Open a page as a screen of a width shows it in a light or dark scheme, with or without motion."""
        self._cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600
        )
        wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        self._cdp("Emulation.setEmulatedMedia", features=[{"name": k, "value": v} for k, v in wishes.items()])
        self._driver.get(page.as_uri())
        self.until("return document.readyState === 'complete'")  # on a busy machine a reload returns while it parses

    def run(self, script: str) -> Any:
        """Run a function's body in the page."""
        return self._driver.execute_script(script)

    def until(self, script: str) -> Any:
        """Run a function's body until what it returns is true."""
        return WebDriverWait(self._driver, 20).until(lambda driver: driver.execute_script(script))

    def press(self, *keys: str) -> None:
        """Type into what has the focus."""
        ActionChains(self._driver).send_keys(*keys).perform()

    def click(self, selector: str) -> None:
        """Click on the first match with the mouse."""
        self._driver.find_element("css selector", selector).click()

    def without_scripts(self, off: bool) -> None:
        """Forbid or allow scripts of pages that are opened from now on."""
        self._cdp("Emulation.setScriptExecutionDisabled", value=off)

    def picture(self) -> bytes:
        """Take a PNG of the whole page; a busy machine may need a second try."""
        try:
            taken = self._cdp("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        except TimeoutException:
            taken = self._cdp("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(taken["data"])

    def complaints(self) -> list[str]:
        """Return what the console says, such as loads that the page's own policy refused."""
        return [entry["message"] for entry in self._driver.get_log("browser")]


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser and end it; tests are skipped where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    started = Chrome(options, ChromeService(driver))
    try:
        yield Browser(started)
    finally:
        started.quit()
