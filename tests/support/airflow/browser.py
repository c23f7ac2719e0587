"""Drive Airflow's pages in headless Chromium with an API server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.airflow.home import AIRFLOW, airflow_home
from tests.support.servers import free_port, wait_until

PATIENCE = 60.0
"""Seconds a page has to show what is waited for."""


def chromium() -> tuple[str, str] | None:
    """Return the paths of Chromium and its driver, or None."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def api_server(home: Path) -> Iterator[str]:
    """URL of an API server with its own database, without login."""
    port = free_port()
    environment = airflow_home(
        home, AIRFLOW__CORE__TEST_CONNECTION="Enabled", AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True"
    )
    log = home / "api-server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*AIRFLOW, "api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            env=environment, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(url) or process.poll() is not None, "the API server", timeout=PATIENCE)
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/v2/monitor/health", timeout=1):  # noqa: S310 - its own server
            return True
    except OSError:
        return False


@contextmanager
def chrome() -> Iterator[Chrome]:
    """A browser without a window."""
    found = chromium()
    assert found is not None
    options = ChromeOptions()
    options.binary_location = found[0]
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1280,1700"):
        options.add_argument(f"--{argument}")
    driver = Chrome(options=options, service=Service(found[1]))
    try:
        yield driver
    finally:
        driver.quit()


class ConnectionForm:
    """Connection dialog, used by its visible texts."""

    def __init__(self, browser: Chrome, url: str) -> None:
        self._browser = browser
        self._url = url
        # The first page logs in; Airflow before 3.3 shows its home page then.
        browser.get(f"{url}/auth/token/login")

    def add(self, conn_id: str, kind: str) -> None:
        """Opens it for a new connection."""
        self._browser.get(f"{self._url}/connections")
        self._click("//button[contains(., 'Add Connection')]")
        self._one("//*[@role='dialog']//input[@name='connection_id']").send_keys(conn_id)
        chooser = self._one("//*[@role='dialog']//input[@role='combobox']")
        chooser.send_keys(kind)
        self._one(f"//*[@role='option'][.='{kind}']")
        chooser.send_keys(Keys.ENTER)
        self._one("//*[@role='dialog']//input[@name='host']")

    def edit(self, conn_id: str) -> None:
        """Opens it for a connection there is, on a page loaded anew."""
        self._browser.get(f"{self._url}/connections")
        self._click(f"//tr[contains(., '{conn_id}')]//button[@aria-label='Edit Connection']")
        self._one("//*[@role='dialog']//input[@name='host']")

    @property
    def groups(self) -> list[str]:
        """The parts of it, from top to bottom."""
        found = self._browser.find_elements(By.XPATH, "//*[@role='dialog']//button[@data-part='item-trigger']")
        return [one.text for one in found]

    def open(self, group: str) -> None:
        """Unfolds a part of it."""
        path = f"//*[@role='dialog']//button[@data-part='item-trigger'][contains(., '{group}')]"
        if self._one(path).get_attribute("aria-expanded") != "true":
            self._click(path)

    def field(self, name: str) -> WebElement:
        """Return the visible column or field of Extra."""
        return self._one(f"//*[@role='dialog']//*[@name='{name}' or @name='element_{name}'][not(@type='hidden')]")

    def fill(self, **values: str) -> None:
        """Replace the content of visible fields by pasting."""
        for name, value in values.items():
            field = self.field(name)
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(Keys.DELETE)
            self._browser.execute_cdp_cmd("Input.insertText", {"text": value})

    def choices(self, label: str) -> list[str]:
        """Return the choices of a field."""
        row = f"//*[@role='dialog']//*[@role='group'][.//label[contains(., '{label}')]]"
        chooser = self._one(f"{row}//input[@role='combobox']")
        chooser.send_keys(Keys.ARROW_DOWN)
        self._one("//*[@role='option']")
        found = [one.text for one in self._browser.find_elements(By.XPATH, "//*[@role='option']")]
        chooser.send_keys(Keys.TAB)  # Escape would close the dialog as well
        return found

    def save(self) -> None:
        """Saves it, after which it is closed."""
        self._click("//*[@role='dialog']//button[contains(., 'Save')][not(@disabled)]")
        WebDriverWait(self._browser, PATIENCE).until(
            lambda browser: not browser.find_elements(By.XPATH, "//*[@role='dialog']")
        )

    def test(self, conn_id: str) -> str:
        """Presses Test on a page loaded anew; what it says then."""
        self._browser.get(f"{self._url}/connections")
        self._click(f"//tr[contains(., '{conn_id}')]//button[@aria-label='Test Connection']")
        return str(self._until(lambda: self._one("//*[@data-scope='toast'][@data-part='root']").text, "an answer"))

    def screenshot(self, file: Path) -> None:
        """The dialog as it looks."""
        self._one("//*[@role='dialog']").screenshot(str(file))

    def _click(self, path: str) -> None:
        def click() -> bool:
            self._one(path).click()
            return True

        self._until(click, f"a click on {path}")

    def _one(self, path: str) -> WebElement:
        """The element there, once it can be seen."""

        def find() -> WebElement | None:
            return next((one for one in self._browser.find_elements(By.XPATH, path) if one.is_displayed()), None)

        found = self._until(find, path)
        assert isinstance(found, WebElement)
        return found

    def _until(self, find: Callable[[], object], what: str) -> object:
        """Return the first result of ``poll``, despite a redrawn page."""
        moving = (StaleElementReferenceException, ElementClickInterceptedException)
        wait = WebDriverWait(self._browser, PATIENCE, ignored_exceptions=moving)
        return wait.until(lambda _: find(), f"the page does not come to show: {what}")
