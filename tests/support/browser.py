"""A real browser on pages of ours: Debian's Chromium, driven without a download and without a mouse."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

_MOST_TABS = 150
_ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")

# The contrast of each visible text with what is behind it, as WCAG 2.2, 1.4.3 counts; below 4.5 it is told. What is
# disabled is exempt there, and so is what is outside the page's picture.
_CONTRAST = """
const parse = (text) => {
  const found = text.match(/^rgba?\\(([\\d.]+), ([\\d.]+), ([\\d.]+)(?:, ([\\d.]+))?\\)$/);
  return found ? [+found[1], +found[2], +found[3], found[4] === undefined ? 1 : +found[4]] : null;
};
const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3])).concat(1);
const light = (c) => {
  const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  const layers = [];
  for (let at = element; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour && colour[3] > 0) layers.push(colour);
  }
  return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
};
const told = [];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  const box = element.getBoundingClientRect();
  if (!texts.currentNode.textContent.trim() || box.width < 2 || box.height < 2) continue;
  if (element.closest("svg, noscript, [disabled]")) continue;
  const ground = behind(element);
  const ink = parse(getComputedStyle(element).color);
  if (!ink) continue;
  const [a, b] = [light(over(ink, ground)), light(ground)].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) told.push(`${ratio.toFixed(2)}: ${texts.currentNode.textContent.trim().slice(0, 40)}`);
}
return [...new Set(told)];
"""

_OVERFLOW = """
const wide = [];
const page = document.documentElement;
if (Math.max(page.scrollWidth, innerWidth) > page.clientWidth) wide.push(`the page: ${page.scrollWidth}`);
for (const element of document.querySelectorAll("main *")) {
  const cuts = ["hidden", "clip", "auto", "scroll"].includes(getComputedStyle(element).overflowX);
  const meant = element.matches("input, textarea, select, progress, pre") || element.clientWidth < 2;
  if (cuts && !meant && element.scrollWidth > element.clientWidth + 1) wide.push(element.className || element.tagName);
}
return wide;
"""


class Browser:
    """One window, moved by the keyboard."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self._address = address

    def open(self, path: str) -> None:
        """Go to a page of ours."""
        self.driver.get(self._address + path)

    @property
    def path(self) -> str:
        """Where the browser is."""
        return str(self.driver.current_url).removeprefix(self._address)

    @property
    def source(self) -> str:
        """The page as it stands."""
        return str(self.driver.page_source)

    @property
    def text(self) -> str:
        """What people read."""
        return str(self.run("return document.body.innerText"))

    def run(self, script: str) -> Any:
        """What a script in the page gives."""
        return self.driver.execute_script(script)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def tab_to(self, name: str) -> WebElement:
        """Press Tab until the element of that name has the focus, and see that it shows it."""
        for _ in range(_MOST_TABS):
            self.press(Keys.TAB)
            element: WebElement = self.driver.switch_to.active_element
            if name in (str(element.accessible_name), element.get_attribute("id")):
                shown = self.run(
                    "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.outlineWidth]"
                )
                assert shown[0] != "none" and shown[1] != "0px", f"{name} has the focus and does not show it: {shown}"
                return element
        pytest.fail(f"Tab does not lead to {name} on {self.path}:\n{self.text[:2000]}")

    def type_into(self, name: str, text: str) -> None:
        """Fill a field, by the keyboard alone."""
        self.tab_to(name)
        self.press(text)

    def enter(self, name: str) -> None:
        """Press a button or follow a link, by the keyboard alone, and wait for the page that follows."""
        before = self.driver.find_element("tag name", "html")
        self.tab_to(name)
        self.press(Keys.ENTER)
        self.wait(f"page after {name}", lambda: _gone(before))

    def wait(self, what: str, look: Any, seconds: float = 60.0) -> Any:
        """What `look` gives once it is true; the page may be loaded anew meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                if found := look():
                    return found
            time.sleep(0.2)
        pytest.fail(f"no {what} within {seconds} s on {self.path}:\n{self.text[:3000]}")

    def wait_for_text(self, text: str, seconds: float = 60.0) -> None:
        """Until the page says that, by itself."""
        self.wait(text, lambda: text in self.text, seconds)

    def wide(self, width: int, height: int = 800) -> None:
        """Be as wide as that."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def dark(self, dark: bool) -> None:
        """Prefer dark pages, or light ones."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def overflow(self) -> list[str]:
        """What is wider than the window, or than the part of the page that it is in and that would cut it off."""
        return list(self.run(_OVERFLOW))

    def low_contrasts(self) -> list[str]:
        """Texts that are hard to read."""
        return list(self.run(_CONTRAST))

    def complaints(self) -> list[str]:
        """What the browser complained of since it was asked last: scripts, policies, what was not there."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]


def _gone(element: WebElement) -> bool:
    try:
        element.is_enabled()
    except Exception:
        return True
    return False


@contextlib.contextmanager
def browser(address: str, *, scripts: bool = True) -> Iterator[Browser]:
    """A browser that is at home at that address; skips where there is none. Without `scripts` pages run none."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    os.environ["SE_AVOID_STATS"] = "true"
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in _ARGUMENTS:
        options.add_argument(argument)
    if not scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    found = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Browser(found, address)
    finally:
        found.quit()
