"""A headless Chromium for tests of pages; tests skip where it, its driver or selenium is missing, and never hang."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

TIMEOUT_S = 40  # of each command: a browser that does not answer fails or skips the test
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Page:
    """One page in the browser."""

    def __init__(self, driver, path: Path) -> None:
        self.driver = driver
        self.url = path.resolve().as_uri()
        driver.get_log("browser")  # what earlier pages said
        driver.get_log("performance")
        driver.get(self.url)

    def run(self, script: str, *arguments):
        """The value that a script of the page returns."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str):
        return self.driver.find_elements("css selector", selector)

    def press(self, keys: str) -> None:
        """Press keys on what has the focus; names as in ``selenium.webdriver.common.keys.Keys``."""
        self.driver.switch_to.active_element.send_keys(keys)

    def resize(self, width: int, height: int = 900) -> None:
        """Set the size of the page itself: a window of Chromium is never narrower than 500 pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, color_scheme: str) -> None:
        """Prefer ``light`` or ``dark``, as the settings of a system do."""
        features = [{"name": "prefers-color-scheme", "value": color_scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def print_media(self, on: bool = True) -> None:
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print" if on else ""})

    def screenshot(self, path: Path) -> None:
        """The whole page, down to its end."""
        import base64

        given = {"format": "png", "captureBeyondViewport": True}
        path.write_bytes(base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", given)["data"]))

    def errors(self) -> list[str]:
        """Errors and warnings of the console since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses of all requests since the page was opened, but for that of the page itself."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if url.partition("#")[0] != self.url and not url.startswith(("data:", "blob:"))]

    def accessibility_faults(self) -> list[str]:
        """What axe-core finds serious or critical: rule, element and reason of each."""
        self.run(axe_script())
        self.driver.set_script_timeout(TIMEOUT_S)
        found = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1]; axe.run().then((found) => done(found.violations))"
        )
        return [
            f"{rule['id']}: {node['html'][:160]}: {node['failureSummary'][:300]}"
            for rule in found
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]


@functools.cache
def axe_script() -> str:
    """The text of axe-core, which the package axe-core-python holds; skips without it."""
    spec = importlib.util.find_spec("axe_core_python")
    if spec is None or spec.origin is None:
        pytest.skip("axe-core is missing: pip install axe-core-python")
    return (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """A running browser; skips without one."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing: pip install selenium")
    binary = next((path for name in _CHROMIUM if (path := shutil.which(name))), None)
    service = shutil.which("chromedriver")
    if binary is None or service is None:
        pytest.skip("chromium or chromedriver is missing: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "WARNING", "performance": "ALL"})
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)  # selenium takes it for all commands of the driver
    try:
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    except Exception as error:  # a browser that does not start is no fault of the page
        pytest.skip(f"chromium does not start: {type(error).__name__}: {error}".splitlines()[0])
    finally:
        socket.setdefaulttimeout(before)
    driver.set_page_load_timeout(TIMEOUT_S)
    yield driver
    with contextlib.suppress(Exception):  # the tests are over
        driver.quit()


@pytest.fixture
def open_page(chromium):
    """Opens a file in the browser, at 1280 pixels, in light colours."""

    def opened(path: Path, width: int = 1280, color_scheme: str = "light") -> Page:
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
        page = Page(chromium, path)
        page.resize(width)
        page.prefer(color_scheme)
        return page

    return opened
