"""Controls the page of `mail_jax.app` in a headless Chromium."""

import base64
import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
AXE = "axe-core@4.14.1"
WAIT = 40  # seconds; the first answer of a photo's size is compiled


def axe_core(folder: pathlib.Path) -> str | None:
  """The source of axe-core, from the npm registry; None where npm or the registry is not there."""
  command = ["npm", "pack", AXE, "--silent", "--pack-destination", str(folder)]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
  except (OSError, subprocess.TimeoutExpired):
    return None
  if done.returncode:
    return None
  with tarfile.open(next(folder.glob("axe-core-*.tgz"))) as package:
    file = package.extractfile("package/axe.min.js")
    return file.read().decode() if file else None


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

  def all(self, selector: str) -> list:
    """What is shown now."""
    found = self.driver.find_elements(By.CSS_SELECTOR, selector)
    return [element for element in found if element.is_displayed()]

  def style(self, selector: str, name: str, number: int = 0, part: str | None = None) -> str:
    """A computed style of an element, or of its ::before."""
    script = """
      const [selector, name, number, part] = arguments;
      const found = document.querySelectorAll(selector)[number];
      return getComputedStyle(found, part).getPropertyValue(name);"""
    return self.driver.execute_script(script, selector, name, number, part)

  def pick(self, number: int) -> list[str]:
    """Picks an example, from 1, and returns its expressions."""
    self.press(f"#examples .grid-container > :nth-child({number}) button")
    self.find("#photo .image-frame img")
    return self.until(lambda: self.find("#text textarea").get_property("value")).splitlines()

  def walk(self) -> list[tuple[str, bool]]:
    """Presses Tab through the page; where the focus was, and whether that was visible."""
    script = """
      const here = document.activeElement, path = [];
      if (window.walked.has(here)) return ['', false];
      window.walked.add(here);
      for (let at = here; at && at !== document.body; at = at.parentElement)
        path.push(at.id || at.getAttribute('class') || at.tagName);
      const seen = [here, here.closest('label')].some((at) => {
        if (!at) return false;
        const style = getComputedStyle(at);
        return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 1;
      });
      return [path.join(' < '), seen];"""
    self.driver.execute_script(
      "document.activeElement.blur(); window.scrollTo(0, 0); window.walked = new WeakSet()"
    )
    reached = []
    for _ in range(60):
      self.key("TAB")
      where, seen = self.driver.execute_script(script)
      if not where:
        break
      reached.append((where, seen))
    return reached

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
        # The same file again is no change, unless the field is empty.
        self.driver.execute_script("arguments[0].value = ''", found[0])
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

  def key(self, name: str, *modifiers: str) -> None:
    """Presses a key where the focus is."""
    chain = ActionChains(self.driver)
    for modifier in modifiers:
      chain.key_down(getattr(Keys, modifier))
    chain.send_keys(getattr(Keys, name, name))
    for modifier in modifiers:
      chain.key_up(getattr(Keys, modifier))
    chain.perform()

  def focused(self):
    return self.driver.switch_to.active_element

  def draw(self, points: list[tuple[float, float]], selector: str = "#photo .image-frame img"):
    """Draws a line on a photo with the pointer, in fractions of the photo; a point is a click."""
    picture = self.find(selector)
    self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
    script = """
      const box = arguments[0].getBoundingClientRect(), image = arguments[0];
      const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
      const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
      return [box.left + (box.width - w) / 2, box.top + (box.height - h) / 2, w, h];"""
    left, top, width, height = self.driver.execute_script(script, picture)
    places = [(left + x * width, top + y * height) for x, y in points]
    for kind, (x, y) in [
      ("mouseMoved", places[0]),
      ("mousePressed", places[0]),
      *(("mouseMoved", place) for place in places[1:]),
      ("mouseReleased", places[-1]),
    ]:
      event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
      self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

  def violations(self, axe: str) -> list[str]:
    """What axe finds that is serious or critical: its rule and the first elements.

    Args:
      axe: the source of axe-core.
    """
    self.driver.execute_script(axe)
    found = self.driver.execute_async_script("axe.run(document).then(arguments[0])")
    assert len(found["passes"]) > 10
    return [
      f"{row['impact']} {row['id']}: {[node['html'][:160] for node in row['nodes'][:3]]}"
      for row in found["violations"]
      if row["impact"] in ("serious", "critical")
    ]

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
