"""Controls the page of `mail_jax.app` in a headless Chromium."""

import base64
import contextlib
import io
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WAIT = 40  # seconds; the first answer of a photo's size is compiled


class Browser:
  """The page as visitors see it."""

  def __init__(self, driver: Any, url: str):
    self.driver, self.url = driver, url

  def open(self, width: int = 1280, theme: str = "light") -> None:
    """Loads the page at a width, as on a phone where it is small."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = [{"name": "prefers-color-scheme", "value": theme}]
    self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
    self.driver.get(self.url)
    self.find("#find")

  def find(self, selector: str):
    """Waits for what is shown."""
    return self.until(lambda: self._shown(selector))

  def _shown(self, selector: str):
    found = self.driver.find_elements(By.CSS_SELECTOR, selector)
    return next((element for element in found if element.is_displayed()), None)

  def until(self, condition, seconds: float = WAIT):
    # Elements that were redrawn in between are looked up again.
    waiting = WebDriverWait(self.driver, seconds, 0.1, [StaleElementReferenceException])
    return waiting.until(lambda _: condition())

  def upload(self, path: pathlib.Path, field: str = "#photo") -> None:
    """Gives a file to an upload field that is empty."""
    self.clear(field)
    inputs = (By.CSS_SELECTOR, f"{field} input[type=file]")
    for _ in range(5):  # the page may not listen yet
      found = self.driver.find_elements(*inputs)
      if found:
        found[0].send_keys(str(path))
      with contextlib.suppress(TimeoutException):
        self.until(lambda: not self.driver.find_elements(*inputs), 12)
        return
    raise AssertionError(f"{path} was not taken")

  def clear(self, field: str) -> None:
    for button in self.driver.find_elements(
      By.CSS_SELECTOR, f"{field} button[aria-label*='lear'], {field} button[aria-label*='emove']"
    ):
      self.driver.execute_script("arguments[0].click()", button)
      self.until(lambda: self.driver.find_elements(By.CSS_SELECTOR, f"{field} input[type=file]"))
      return

  def type(self, text: str) -> None:
    """Replaces the expressions."""
    area = self.find("#text textarea")
    self.driver.execute_script(
      "arguments[0].value = arguments[1];"
      "arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
      area, text,
    )  # fmt: skip
    time.sleep(0.3)

  def press(self, selector: str = "#find") -> None:
    self.driver.execute_script("arguments[0].click()", self.find(selector))

  def messages(self) -> list[str]:
    """The texts of the messages that are shown."""
    found = self.driver.find_elements(By.CSS_SELECTOR, ".toast-body")
    return [element.text for element in found if element.is_displayed()]

  def message(self) -> str:
    """Waits for a message, and takes it away."""
    text = self.until(lambda: [text for text in self.messages() if text.strip()])[-1]
    for button in self.driver.find_elements(By.CSS_SELECTOR, ".toast-close"):
      self.driver.execute_script("arguments[0].click()", button)
    self.until(lambda: not self.messages())
    return text

  def picture(self, selector: str) -> np.ndarray:
    """The pixels that a picture of the page shows, as its file has them."""
    address = self.find(selector).get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(self.fetch(address))).convert("RGB"))

  def fetch(self, address: str) -> bytes:
    """A file, as the page itself would get it."""
    script = """
      const done = arguments[1];
      fetch(arguments[0]).then(r => r.blob()).then(blob => {
        const reader = new FileReader();
        reader.onload = () => done(reader.result.split(',')[1]);
        reader.readAsDataURL(blob);
      });"""
    return base64.b64decode(self.driver.execute_async_script(script, address))

  def hosts_asked(self) -> set[str]:
    """The hosts that the page has sent a request to since this was last asked."""
    asked = set()
    for entry in self.driver.get_log("performance"):
      message = json.loads(entry["message"])["message"]
      if message["method"] == "Network.requestWillBeSent":
        address = urlsplit(message["params"]["request"]["url"])
        if address.scheme not in ("data", "blob", "chrome", "about"):
          asked.add(address.hostname or "")
      elif message["method"] == "Network.webSocketCreated":
        asked.add(urlsplit(message["params"]["url"]).hostname or "")
    return asked

  def complaints(self) -> list[str]:
    """What the console says is wrong."""
    return [row["message"] for row in self.driver.get_log("browser") if row["level"] == "SEVERE"]

  def overflow(self) -> int:
    """Pixels by which the page is wider than the window."""
    return self.driver.execute_script(
      "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )

  def shoot(self, path: pathlib.Path) -> None:
    """Takes a picture of the whole page."""
    height = self.driver.execute_script("return document.documentElement.scrollHeight")
    width = self.driver.execute_script("return window.innerWidth")
    shot = self.driver.execute_cdp_cmd(
      "Page.captureScreenshot",
      {
        "captureBeyondViewport": True,
        "clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
      },
    )
    path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def opened(url: str, downloads: pathlib.Path) -> Iterator[Browser]:
  """A browser in front of a page, its downloads in a folder."""
  options = webdriver.ChromeOptions()
  options.binary_location = CHROMIUM or ""
  for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
    options.add_argument(argument)
  # Chromium's own requests do not concern the page.
  options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
  options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
  os.environ.setdefault("SE_OFFLINE", "true")
  driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
  try:
    driver.set_script_timeout(WAIT)
    behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    yield Browser(driver, url)
  finally:
    driver.quit()
